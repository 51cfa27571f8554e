# Holds a connection from 127.0.0.5 to a port of 127.0.0.1 open until the other end closes it, and says nothing on it.
use strict;
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.5", PeerAddr => "127.0.0.1", PeerPort => shift) or die $!;
my $got;
1 while sysread $s, $got, 4096;
