import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import javax.management.ObjectName;
import javax.management.StandardMBean;
import javax.management.openmbean.CompositeData;
import javax.management.openmbean.CompositeDataSupport;
import javax.management.openmbean.CompositeType;
import javax.management.openmbean.OpenType;
import javax.management.openmbean.SimpleType;

/** The beans of a Cassandra in states that a ring of tests is never in: a member of each kind, a stream, a store that cannot be loaded. */
public class StandIn {
    public interface Messaging { void reloadSslCertificates() throws Exception; }

    public interface Storage {
        List<String> getLiveNodes();
        List<String> getUnreachableNodes();
        List<String> getJoiningNodes();
        List<String> getLeavingNodes();
        List<String> getMovingNodes();
        Map<String, String> getEndpointToHostId();
        Map<String, String> getTokenToEndpointMap();
        String getOperationMode();
    }

    public interface Streams { Set<CompositeData> getCurrentStreams(); }

    static class Bean implements Messaging, Storage, Streams {
        public void reloadSslCertificates() throws Exception { throw new java.io.IOException("keystore password was incorrect"); }
        public List<String> getLiveNodes() { return Arrays.asList("10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"); }
        public List<String> getUnreachableNodes() { return Arrays.asList("10.0.0.2"); }
        public List<String> getJoiningNodes() { return Arrays.asList("10.0.0.3"); }
        public List<String> getLeavingNodes() { return Arrays.asList("10.0.0.4"); }
        public List<String> getMovingNodes() { return Arrays.asList("10.0.0.5"); }
        public Map<String, String> getEndpointToHostId() {
            Map<String, String> ids = new LinkedHashMap<>();
            for (int n = 1; n <= 6; n++) ids.put("10.0.0." + n, "0000000" + n + "-0000-4000-8000-000000000001");
            return ids;
        }
        public Map<String, String> getTokenToEndpointMap() {
            Map<String, String> tokens = new LinkedHashMap<>();
            for (int n = 1; n <= 12; n++) tokens.put(String.valueOf(n), "10.0.0." + (n + 1) / 2);
            return tokens;
        }
        public String getOperationMode() { return "JOINING"; }
        public Set<CompositeData> getCurrentStreams() {
            try {
                CompositeType plan = new CompositeType("StreamState", "a plan", new String[] {"planId", "description"}, new String[] {"id", "what"}, new OpenType<?>[] {SimpleType.STRING, SimpleType.STRING});
                return new HashSet<>(Arrays.asList(new CompositeDataSupport(plan, new String[] {"planId", "description"}, new Object[] {"7a2d5f40-c7a1-11ef-9d6c-0b3f5b3a9f10", "Bootstrap"})));
            } catch (Exception e) {
                throw new IllegalStateException(e);
            }
        }
    }

    static <T> void register(String name, T bean, Class<T> as) throws Exception {
        java.lang.management.ManagementFactory.getPlatformMBeanServer().registerMBean(new StandardMBean(bean, as), new ObjectName(name));
    }

    public static void main(String[] args) throws Exception {
        Bean bean = new Bean();
        register("org.apache.cassandra.net:type=MessagingService", bean, Messaging.class);
        register("org.apache.cassandra.db:type=StorageService", bean, Storage.class);
        register("org.apache.cassandra.net:type=StreamManager", bean, Streams.class);
        System.out.println("ready");
        while (System.in.read() >= 0) { }
    }
}
