#!/usr/bin/perl
# launch.pl COMMAND-LINE CPUS DEVICE...: runs duet-vmm with the descriptors of these devices. Its serial port is the file
# $SERIAL, its memory $MEMORY MiB. A device is disk=FILE, readonly=FILE, layers=QCOW2,...,RAW, slow=FILE, console=INPUT,OUTPUT,
# rng, balloon, nic=TAP, vhost=TAP, vsock=SOCKET or control=SOCKET.
use strict;
use warnings;

# Descriptors are for the program that is run.
$^F = 1000;
my ($append, $cpus, @wanted) = @ARGV;
my (@keep, @devices);

sub opened {
    my ($mode, $file) = @_;
    open my $handle, $mode, $file or die "$file: $!\n";
    push @keep, $handle;
    return $handle;
}

# Of kind 1, a stream, or 5, packets.
sub listening {
    my ($path, $kind) = @_;
    socket my $socket, 1, $kind, 0 or die "socket: $!\n";
    unlink $path;
    bind $socket, pack('S a108', 1, $path) or die "$path: $!\n";
    listen $socket, 5;
    push @keep, $socket;
    return fileno $socket;
}

# IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
sub tap {
    my $handle = opened('+<', '/dev/net/tun');
    ioctl $handle, 0x400454ca, pack('a16 S x22', $_[0], 0x5002) or die "$_[0]: $!\n";
    return fileno $handle;
}

my %spec = (
    kernel => fileno opened('<', '/vmlinuz'),
    initrd => fileno opened('<', '/root/vmm/initrd'),
    command_line => "\"console=ttyS0 panic=-1 quiet $append\"",
    cpus => $cpus,
    jail => '{"uid":64123,"gid":64123}',
    memory => ($ENV{MEMORY} // 128) << 20,
    serial => '{"output":' . fileno(opened('>>', $ENV{SERIAL})) . '}',
);
for (@wanted) {
    my ($kind, $value) = split /=/, $_, 2;
    if ($kind eq 'disk') {
        push @devices, "\"disk\",\"name\":\"named\",\"file\":" . fileno opened('+<', $value);
    } elsif ($kind eq 'readonly') {
        push @devices, '"disk","read_only":true,"file":' . fileno opened('<', $value);
    } elsif ($kind eq 'layers') {
        # The last one is raw, and all but the first are only read.
        my ($top, @below) = split /,/, $value;
        my $last = pop @below;
        my @backing = map { '{"format":"qcow2","file":' . fileno(opened('<', $_)) . '}' } @below;
        push @backing, '{"format":"raw","file":' . fileno(opened('<', $last)) . '}';
        push @devices, '"disk","format":"qcow2","backing":[' . join(',', @backing) . '],"file":'
            . fileno opened('+<', $top);
    } elsif ($kind eq 'slow') {
        push @devices, '"disk","read_only":true,"limits":{"read":{"bytes":65536}},"file":' . fileno opened('<', $value);
    } elsif ($kind eq 'console') {
        my ($input, $output) = split /,/, $value;
        push @devices,
            '"console","input":' . fileno(opened('+<', $input)) . ',"output":' . fileno opened('>>', $output);
    } elsif ($kind eq 'nic' || $kind eq 'vhost') {
        my $vhost = $kind eq 'vhost' ? ',"vhost":' . fileno opened('+<', '/dev/vhost-net') : '';
        push @devices, '"nic","mac":[82,84,0,1,2,3],"tap":' . tap($value) . $vhost;
    } elsif ($kind eq 'vsock') {
        push @devices, '"vsock","cid":3,"socket":' . listening($value, 1);
    } elsif ($kind eq 'control') {
        $spec{control} = listening($value, 5);
    } else {
        push @devices, "\"$kind\"";
    }
}
$spec{devices} = '[' . join(',', map { "{\"type\":$_}" } @devices) . ']';
open my $file, '>', "$ENV{SERIAL}.spec" or die $!;
print $file '{' . join(',', map { "\"$_\":$spec{$_}" } keys %spec) . '}';
close $file;
exec 'duet-vmm', "$ENV{SERIAL}.spec" or die "duet-vmm: $!\n";
