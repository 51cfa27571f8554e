# Asks the helper of links to end a connection with 127.0.0.5: PORT REMOTE-PORT COOKIE (hexadecimal, as ss prints it).
use strict;
use IO::Socket::UNIX;
my ($port, $remote, $cookie) = @ARGV;
my $s = IO::Socket::UNIX->new("/run/csm-agent/links.sock") or die $!;
my $q = sprintf '{"id":1,"body":{"instance":"/etc/cassandra/cassandra.yaml","peer":"127.0.0.5","links":[{"local":"127.0.0.1:%d","remote":"127.0.0.5:%d","cookie":%d}]}}',
  $port, $remote, hex $cookie;
syswrite $s, pack("N", length $q) . $q;
sysread $s, my $head, 4;
sysread $s, my $answer, unpack("N", $head);
print "$answer\n";
