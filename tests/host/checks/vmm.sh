# shellcheck shell=bash
# duet-vmm with the host's own kernel: what a guest gets from each device, how it ends, what it cannot do.
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
needs systemd || return 0

# Guests are small: a busybox, some modules of the host's kernel, and perl for the one thing that busybox cannot do.
vmm_common='
cd /root/vmm 2>/dev/null || skip "the guests were not prepared"
export SERIAL=/root/vmm/serial
rm -f serial
end() { # end STATUS COMMAND-LINE CPUS DEVICE...: a machine that ends so
    local wanted=$1 status=0
    shift
    timeout 90 perl launch.pl "$@" || status=$?
    cat serial
    is "$wanted" "$status" "the status"
}
says() { grep -q -a "$1" serial || { echo "the guest did not say: $1"; return 1; }; }
'
vmm() { check "$1" <<<"$vmm_common$2"; }

check "duet-vmm: KVM is found to be of use, and guests are prepared" <<'END'
eventually 20 duet-vmm probe
mkdir -p /root/vmm/root/{bin,proc,sys,dev,mnt,modules}
cd /root/vmm
cp /usr/local/lib/duet-vmm/* .
cp init root
chmod 0755 root/init
mkdir image
tar -C image -xf /root/images/busybox.tar*
cp "$(find image -name busybox -type f | head -n 1)" root/bin
ln -s busybox root/bin/sh
cp /usr/bin/perl root/bin
ldd /usr/bin/perl | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "root${library%/*}"
    cp -L "$library" "root$library"
done
for module in virtio_pci virtio_blk virtio_rng virtio_console virtio_net virtio_balloon vmw_vsock_virtio_transport \
    ext4 button evdev pvpanic-mmio; do
    modprobe --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r file; do
    name=$(basename "${file%.xz}")
    echo "$name" >> root/modules/order
    case $file in *.xz) xz -dc "$file" ;; *) cat "$file" ;; esac > "root/modules/$name"
done
head -c 3000000 /dev/urandom > root/file
(cd root && find . | cpio -o -H newc --quiet) > initrd
END

vmm "duet-vmm: the status says that a guest powered off, rebooted or panicked" '
end 0 "" 1
says "guest: up with 1 CPUs"
end 10 run=reboot 1
says "guest: up with 1 CPUs"
end 11 run=panic 1
says "sysrq triggered crash"
'

vmm "duet-vmm: 2 and 4 CPUs" '
end 0 modules=no 2
says "guest: up with 2 CPUs"
end 0 modules=no 4
says "guest: up with 4 CPUs"
'

vmm "duet-vmm: disks are read, written, flushed and discarded, and a read-only one stays as it is" '
printf "from outside" > disk
head -c 8M /dev/urandom >> disk
truncate -s 1M readonly
truncate -s 64M fs
mke2fs -q -t ext4 fs
before=$(stat -c %b disk)
end 0 run=disk 2 disk=disk readonly=readonly disk=fs
says "guest: read from outside, name named"
says "guest: discarded"
says "guest: read-only 1"
says "guest: copied"
is "written by the guest" "$(tail -c +2049 disk | head -n 1)" "the disk"
[ "$(stat -c %b disk)" -lt "$before" ] || { echo "nothing was discarded"; false; }
e2fsck -fn fs
mount -o loop,ro fs /mnt
cmp root/bin/busybox /mnt/copy
umount /mnt
'

vmm "duet-vmm: a disk of layers is written to, and what lies below stays as it is" '
mkdir -p below
echo "guest: from below" > below/below
rm -f base
truncate -s 64M base
mke2fs -q -t ext4 -d below base
before=$(md5sum < base)
qemu-img create -q -f qcow2 -b base -F raw middle
qemu-img create -q -f qcow2 -b middle -F qcow2 top
middle=$(md5sum < middle)
# The second guest finds what the first has written.
for _ in 1 2; do
    end 0 run=layers 2 layers=top,middle,base
    says "guest: from below"
    says "guest: copied"
    qemu-img check -q top
    rm serial
done
is "$before" "$(md5sum < base)" "the lowest layer"
is "$middle" "$(md5sum < middle)" "the layer between"
qemu-img convert -O raw top whole
e2fsck -fn whole
mount -o loop,ro whole /mnt
cmp root/bin/busybox /mnt/copy
umount /mnt
rm -rf below base middle top whole
'

vmm "duet-vmm: a layer that is not what is said is refused" '
status=0
perl launch.pl "" 1 layers=initrd,init > log 2>&1 || status=$?
is 1 "$status" "the status"
grep -q "layer 0 of a disk: it is no qcow2 image" log || { cat log; false; }
'

vmm "duet-vmm: a limit of a disk holds, and is changed while the guest waits" '
head -c 16M /dev/urandom > slow
timeout 120 perl launch.pl run=slow 1 slow=slow control=control > log 2>&1 &
guest=$!
eventually 60 grep -q "guest: reads" serial
# All of it would take four minutes.
fails eventually 4 grep -q "guest: has read" serial
perl ask.pl control control "{\"type\":\"limit_nic\",\"slot\":1,\"limits\":{}}" | grep -q failed
perl ask.pl control control "{\"type\":\"limit_disk\",\"slot\":1,\"limits\":{}}" | grep -q done
eventually 30 grep -q "guest: has read" serial
wait $guest || { cat serial log; false; }
rm slow
'

vmm "duet-vmm: a console in both directions, and random numbers" '
rm -f input output
mkfifo input
: > output
(eventually 60 grep -q "to the console" output && echo "answered" > input) &
end 0 run=console 1 console=input,output rng
says "guest: console answered, random virtio_rng.0 64"
'

for vmm_nic in nic vhost; do
    vmm "duet-vmm: packets on a tap ($vmm_nic)" '
nic='$vmm_nic'
[ $nic = nic ] || modprobe vhost_net
ip tuntap add vmm0 mode tap vnet_hdr
ip addr add 10.9.9.1/24 dev vmm0
ip link set vmm0 up
mkdir -p www
head -c 20M /dev/urandom > www/file
# It waits for the address to be usable, and ends with this.
root/bin/busybox httpd -f -p 10.9.9.1:8000 -h www &
server=$!
timeout 90 perl ask.pl receive 10.9.9.1 8001 > received &
receiver=$!
end 0 run=net 1 $nic=vmm0 && status=0 || status=$?
kill $server
wait $receiver || true
ip link del vmm0
[ $status = 0 ]
says "guest: ping"
says "guest: got $(md5sum < www/file)"
says "guest: put $(md5sum < received)"
'
done

vmm "duet-vmm: streams to a port in the guest" '
timeout 120 perl launch.pl run=vsock 1 vsock=socket > log 2>&1 &
guest=$!
eventually 60 grep -q "guest: listens" serial
is hello "$(echo hello | perl ask.pl port socket 1024)"
head -c 5M /dev/urandom > sent
perl ask.pl port socket 1024 < sent | cmp - sent
fails perl ask.pl port socket 7 < /dev/null
is again "$(echo again | perl ask.pl port socket 1024)"
wait $guest || { cat serial log; false; }
'

vmm "duet-vmm: a guest gives memory back" '
rm -f input output
mkfifo input
: > output
MEMORY=512 timeout 120 perl launch.pl run=balloon 1 balloon console=input,output control=control > log 2>&1 &
guest=$!
resident() { awk "/^Rss/ { print \$2 }" /proc/$(pgrep -x duet-vmm)/smaps_rollup; }
eventually 60 grep -q "guest: holds" serial
full=$(resident)
less() { [ "$(resident)" -lt "$1" ]; }
# What is free is given back without being asked for.
echo go > input
eventually 60 grep -q "guest: freed" serial
eventually 60 less $((full - 64000))
perl ask.pl control control "{\"type\":\"balloon\",\"bytes\":$((256 << 20))}"
given() { perl ask.pl control control "{\"type\":\"status\"}" | grep -q "\"balloon\":$((256 << 20))"; }
eventually 60 given
perl ask.pl control control "{\"type\":\"stop\"}"
status=0
wait $guest || status=$?
is 14 $status "the status"
'

vmm "duet-vmm: the power button, pause and resume" '
timeout 120 perl launch.pl run=button 2 control=control > log 2>&1 &
guest=$!
eventually 60 grep -q "guest: waits" serial
perl ask.pl control control "{\"type\":\"pause\"}" | grep -q done
perl ask.pl control control "{\"type\":\"power_button\"}" | grep -q done
fails eventually 3 grep -q "guest: pressed" serial
perl ask.pl control control "{\"type\":\"resume\"}" | grep -q done
eventually 30 grep -q "guest: pressed" serial
wait $guest || { cat serial log; false; }
'

vmm "duet-vmm: a guest that writes wildly to its devices harms nobody" '
truncate -s 8M scratch
head -c 1M /dev/urandom > readonly
before=$(md5sum < readonly)
end 0 run=hostile 2 disk=scratch readonly=readonly rng balloon vsock=socket
says "guest: wrote"
is "$before" "$(md5sum < readonly)" "the disk"
'

vmm "duet-vmm: nothing is left of the guests" '
fails pgrep -x duet-vmm
rm -rf /root/vmm
'
