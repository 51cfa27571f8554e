import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.rmi.registry.LocateRegistry;
import java.util.Collection;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeSet;
import javax.management.MBeanException;
import javax.management.MBeanServerConnection;
import javax.management.ObjectName;
import javax.management.RuntimeMBeanException;
import javax.management.openmbean.CompositeData;
import javax.management.remote.JMXConnector;
import javax.management.remote.rmi.RMIConnector;
import javax.management.remote.rmi.RMIServer;
import javax.rmi.ssl.SslRMIClientSocketFactory;

/**
 * The words of Cassandra's nodetool that csm-agent needs, for a host that has a Java and no nodetool: the same options, the same
 * words, and as much of the same output as the agent reads. It needs no jar of Cassandra's.
 *
 * <p>The connector's stub is taken from the registry itself, not through a service URL: that would need java.naming and jdk.naming.rmi,
 * which small runtimes leave out. A password comes from a file and is never printed.
 *
 * <p>Exit codes are nodetool's: 0 done, 1 wrong options or no connection, 2 Cassandra refused or failed.
 */
public final class Client {
    private static final long MAX_FILE = 64 << 10;

    private String host = "127.0.0.1", user, passwordFile, word;
    private int port = 7199;
    private boolean tls;

    public static void main(String[] args) {
        System.exit(new Client().run(args));
    }

    private int run(String[] args) {
        try {
            read(args);
        } catch (RuntimeException e) {
            System.err.println("usage: [-h HOST] [-p PORT] [--ssl] [-u USER -pwf FILE] reloadssl|status|netstats: " + e.getMessage());
            return 1;
        }
        MBeanServerConnection cassandra;
        try {
            cassandra = connect();
        } catch (Exception e) {
            System.err.println("cannot connect to JMX at " + host + ":" + port + ": " + chain(e));
            return 1;
        }
        try {
            ask(cassandra, System.out);
        } catch (Exception e) {
            System.err.println(word + " failed: " + chain(e));
            return 2;
        }
        System.out.flush();
        return 0;
    }

    private void read(String[] args) {
        int i = 0;
        for (; i < args.length && args[i].startsWith("-"); i++) {
            switch (args[i]) {
                case "-h": host = args[++i]; break;
                case "-p": port = Integer.parseInt(args[++i]); break;
                case "--ssl": tls = true; break;
                case "-u": user = args[++i]; break;
                case "-pwf": passwordFile = args[++i]; break;
                default: throw new IllegalArgumentException("unknown option " + args[i]);
            }
        }
        if (i != args.length - 1) {
            throw new IllegalArgumentException("one word is needed");
        }
        word = args[i];
    }

    private MBeanServerConnection connect() throws Exception {
        Map<String, Object> environment = new HashMap<>();
        if (user != null) {
            environment.put(JMXConnector.CREDENTIALS, new String[] {user, password()});
        }
        if (tls) {
            readProperties(new File(System.getenv("HOME") + "/.cassandra/nodetool-ssl.properties"));
        }
        RMIServer server = (RMIServer) LocateRegistry.getRegistry(host, port, tls ? new SslRMIClientSocketFactory() : null).lookup("jmxrmi");
        RMIConnector connector = new RMIConnector(server, null);
        connector.connect(environment);
        return connector.getMBeanServerConnection();
    }

    /** The password of the user's own line `user password`, as nodetool's -pwf has it. */
    private String password() throws IOException {
        File file = new File(passwordFile);
        bound(file);
        try (BufferedReader lines = Files.newBufferedReader(file.toPath(), StandardCharsets.UTF_8)) {
            for (String line; (line = lines.readLine()) != null; ) {
                String[] columns = line.trim().split("\\s+");
                if (columns.length == 2 && columns[0].equals(user)) {
                    return columns[1];
                }
            }
        }
        throw new IOException("no line `" + user + " PASSWORD` in " + file);
    }

    /** The -Dname=value of the file that nodetool's script puts on its command line for --ssl. */
    private static void readProperties(File file) throws IOException {
        if (!file.exists()) {
            return; // the JVM's own defaults, as with nodetool
        }
        bound(file);
        for (String given : new String(Files.readAllBytes(file.toPath()), StandardCharsets.UTF_8).trim().split("\\s+")) {
            int is = given.indexOf('=');
            if (!given.startsWith("-D") || is < 3) {
                throw new IOException("not all of " + file + " is -Dname=value");
            }
            System.setProperty(given.substring(2, is), given.substring(is + 1));
        }
    }

    private static void bound(File file) throws IOException {
        if (file.length() > MAX_FILE) {
            throw new IOException(file + " is longer than " + MAX_FILE + " bytes");
        }
    }

    private void ask(MBeanServerConnection cassandra, PrintStream out) throws Exception {
        switch (word) {
            case "reloadssl": cassandra.invoke(new ObjectName("org.apache.cassandra.net:type=MessagingService"), "reloadSslCertificates", null, null); return;
            case "status": status(cassandra, out); return;
            case "netstats": netstats(cassandra, out); return;
            default: throw new IllegalArgumentException("unknown word");
        }
    }

    /** A line for each member that has a token, as `nodetool status` has it: up or down, state, address, host id. */
    private static void status(MBeanServerConnection cassandra, PrintStream out) throws Exception {
        ObjectName service = new ObjectName("org.apache.cassandra.db:type=StorageService");
        Collection<?> live = (Collection<?>) cassandra.getAttribute(service, "LiveNodes"), dead = (Collection<?>) cassandra.getAttribute(service, "UnreachableNodes"),
                joining = (Collection<?>) cassandra.getAttribute(service, "JoiningNodes"), leaving = (Collection<?>) cassandra.getAttribute(service, "LeavingNodes"),
                moving = (Collection<?>) cassandra.getAttribute(service, "MovingNodes");
        Map<?, ?> ids = (Map<?, ?>) cassandra.getAttribute(service, "EndpointToHostId");
        for (Object node : new TreeSet<Object>(((Map<?, ?>) cassandra.getAttribute(service, "TokenToEndpointMap")).values())) {
            String state = joining.contains(node) ? "J" : leaving.contains(node) ? "L" : moving.contains(node) ? "M" : "N";
            out.println((live.contains(node) ? "U" : dead.contains(node) ? "D" : "?") + state + "  " + node + "  " + ids.get(node));
        }
    }

    /** The mode, and a line for each plan of streams, as `nodetool netstats` begins. */
    private static void netstats(MBeanServerConnection cassandra, PrintStream out) throws Exception {
        out.println("Mode: " + cassandra.getAttribute(new ObjectName("org.apache.cassandra.db:type=StorageService"), "OperationMode"));
        Collection<?> plans = (Collection<?>) cassandra.getAttribute(new ObjectName("org.apache.cassandra.net:type=StreamManager"), "CurrentStreams");
        if (plans.isEmpty()) {
            out.println("Not sending any streams.");
        }
        for (Object plan : plans) {
            out.println(((CompositeData) plan).get("description") + " " + ((CompositeData) plan).get("planId"));
        }
    }

    /** What failed and why, on one line; what JMX only wraps is left out. */
    private static String chain(Throwable e) {
        StringBuilder said = new StringBuilder();
        for (int depth = 0; e != null && depth < 5; e = e.getCause()) {
            if (e instanceof MBeanException || e instanceof RuntimeMBeanException) {
                continue;
            }
            said.append(depth++ == 0 ? "" : "; ").append(e.getClass().getName()).append(": ").append(e.getMessage());
        }
        return said.toString().replaceAll("\\s+", " ");
    }
}
