#!/usr/bin/perl
# ask.pl control SOCKET REQUEST: the answer of a machine's control socket.
# ask.pl receive ADDRESS PORT: prints what the first to connect over TCP sends.
# ask.pl port SOCKET PORT: connects to a port in the guest, sends the standard input and prints what comes back.
use strict;
use warnings;

my ($what, $path, $value) = @ARGV;
if ($what eq 'receive') {
    socket my $listener, 2, 1, 6 or die "socket: $!\n";
    bind $listener, pack('S n C4 x8', 2, $value, split /\./, $path) or die "$path: $!\n";
    listen $listener, 1;
    accept my $peer, $listener or die "accept: $!\n";
    while (sysread $peer, my $data, 65536) { syswrite STDOUT, $data }
    exit;
}
socket my $socket, 1, $what eq 'control' ? 5 : 1, 0 or die "socket: $!\n";
connect $socket, pack('S a108', 1, $path) or die "$path: $!\n";
if ($what eq 'control') {
    send $socket, $value, 0 or die "send: $!\n";
    recv $socket, my $answer, 65536, 0;
    print "$answer\n";
    exit;
}
syswrite $socket, "CONNECT $value\n";
my ($line, $byte) = ('', '');
$line .= $byte while $line !~ /\n/ && sysread $socket, $byte, 1;
$line =~ /^OK \d+\n$/ or die "no answer from the guest: $line\n";
# One sends while the other receives, or both ends would wait for each other.
if (fork == 0) {
    while (sysread STDIN, my $data, 65536) {
        my $sent = 0;
        $sent += syswrite $socket, substr $data, $sent while $sent < length $data;
    }
    shutdown $socket, 1;
    exit;
}
while (sysread $socket, my $data, 65536) { syswrite STDOUT, $data }
wait;
exit $? >> 8;
