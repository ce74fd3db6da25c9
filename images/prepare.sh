# Changes an image when it is prepared; the key and sshd's settings are changed elsewhere.  The
# guest's /bin/sh runs it once as root.  $1 is the new password for the serial line.  Every change prints a line
# "changed: ..."; `inv image.info` shows them.
set -eu

password=$1
changed() { echo "changed: $*"; }

# root's password: it works only on the serial line, and only the prepared image's owner knows it.
printf '%s\n' "$password" | pw usermod root -h 0
changed "root has a random password, for the serial line only"

# The loader: no countdown, all output on the serial line, no vmm.ko before ours.
loader=/boot/loader.conf
touch $loader
sed -i '' -e '/# vmm-workbench$/d' -e '/^[[:space:]]*vmm_load=/d' $loader
while read -r setting; do
	echo "$setting # vmm-workbench" >>$loader
done <<'SETTINGS'
autoboot_delay="-1"
beastie_disable="YES"
loader_logo="none"
boot_multicons="NO"
boot_serial="YES"
comconsole_speed="115200"
console="comconsole"
kern.hz="100"
hint.atkbd.0.disabled="1"
hint.psm.0.disabled="1"
hint.atkbdc.0.disabled="1"
hint.uart.1.disabled="1"
hint.fdc.0.disabled="1"
hint.ppc.0.disabled="1"
hw.apic.timer_tsc_deadline="0"
SETTINGS
changed "loader.conf: no countdown, no menu, serial console; 100 Hz, the default in a VM that FreeBSD recognizes"
changed "loader.conf: no keyboard, mouse, floppy, parallel port: probing them takes minutes in an emulator"
# Bochs compares TSC deadlines with ticks since its start, and a reset sets only the TSC to 0: from
# then on every deadline has passed, and a guest that reboots gets interrupts without end.
changed "loader.conf: the local APIC's timer counts down, without TSC deadlines: in Bochs no reboot survives them"

# rc.conf: a network on any card, and no service that a test bench does not use.
for name in $(sysrc -aqN 2>/dev/null | grep '^ifconfig_'); do
	sysrc -qx "$name" || true
done
sysrc -q hostname=vmm-workbench ifconfig_DEFAULT=SYNCDHCP sshd_enable=YES kld_list= \
    background_dhclient=NO defaultroute_delay=0 netwait_enable=NO \
    growfs_enable=NO firstboot_freebsd_update_enable=NO firstboot_pkgs_enable=NO \
    nuageinit_enable=NO cloudinit_enable=NO \
    dumpdev=NO savecore_enable=NO crashinfo_enable=NO \
    sendmail_enable=NONE dma_flushq_enable=NO cron_enable=NO syslogd_enable=NO newsyslog_enable=NO \
    ntpd_enable=NO ntpdate_enable=NO powerd_enable=NO moused_nondefault_enable=NO mixer_enable=NO \
    devd_enable=NO devmatch_enable=NO kldxref_enable=NO virecover_enable=NO update_motd=NO motd_enable=NO \
    cleanvar_enable=NO ip6addrctl_enable=NO rtsold_enable=NO osrelease_enable=NO clear_tmp_X=NO background_fsck=NO \
    entropy_save_num=1 rc_startmsgs=YES >/dev/null
changed "rc.conf: DHCP on any card; no cron, mail, syslog, crash dumps, device matching, growfs"

# rc reads a service's settings from here; those of the image stay and are read first.
own_settings() {
	mkdir -p /etc/rc.conf.d
	if [ -d "/etc/rc.conf.d/$1" ]; then
		cat >"/etc/rc.conf.d/$1/vmm_workbench"
	else
		cat >>"/etc/rc.conf.d/$1"
	fi
}

# A line on the console as soon as sshd listens, which is when it writes its pid file: in Bochs an
# earlier connection breaks the guest's network.  sshd's own check of its settings and of existing
# keys would take an emulator a second.
own_settings sshd <<'READY'
start_precmd='rm -f /var/run/sshd.pid'
start_postcmd=vmm_workbench_up
vmm_workbench_up() {
	local tries=0
	until [ -s /var/run/sshd.pid ] || [ $tries -ge 100 ]; do
		sleep 0.1
		tries=$((tries + 1))
	done
	echo 'vmm-workbench: sshd is up' >/dev/console
}
READY
changed "rc.conf.d/sshd: a line on the console once sshd listens; its settings are not checked before"

# The rules that hide devices from jails: rc.d/devfs starts devfs(8) for each of the fifty rules,
# which takes an emulator as long as the start of the kernel.  Here five starts of devfs(8) load the
# same rules; if an image has rules of its own, rc.d/devfs loads them as usual.
own_settings devfs <<'RULES'
start_cmd=vmm_workbench_devfs
vmm_workbench_devfs() {
	local number rules
	if [ ! -e /etc/devfs.rules ] && [ -z "$devfs_system_ruleset$devfs_set_rulesets" ] &&
	    checkyesno devfs_load_rulesets; then
		# Not with a file: the root file system may not be writable yet.
		rules=$(awk '/^\[.*=[0-9]+\]/ { split(substr($0, 2), it, /[]=]/); set[it[1]] = number = it[2]; next }
		    /^add / { gsub("\047", ""); if ($2 == "include") $3 = set[substr($3, 2)]; $1 = number; print }' \
		    "${devfs_rulesets%% *}")
		for number in $(echo "$rules" | cut -d ' ' -f 1 | uniq); do
			devfs rule -s $number delset 2>/dev/null
			echo "$rules" | sed -n "s/^$number //p" | devfs rule -s $number add -
		done
		devfs_rulesets_init=1
	fi
	devfs_start
}
RULES
changed "rc.conf.d/devfs: the rules for jails are loaded in five steps instead of fifty"

rm -f /firstboot /firstboot-reboot

# The root file system by name, so that it is found on a virtio disk and on an ATA disk alike.
root=$(awk '$2 == "/" { print $1; exit }' /etc/fstab)
case $root in
/dev/vtbd*|/dev/ada*|/dev/da*|/dev/nda*|/dev/nvd*)
	device=${root#/dev/}
	name=$(glabel status -s | awk -v device="$device" '$3 == device { print $1 }' |
	    grep -E '^(gpt|ufs|ufsid|gptid)/' | head -n 1)
	if [ -z "$name" ]; then
		echo "the root file system $root has no label; give it one (tunefs -L) and import again" >&2
		exit 1
	fi
	sed -i '' "s|^$root[[:space:]]|/dev/$name	|" /etc/fstab
	changed "fstab: / is /dev/$name, it was $root"
	;;
esac
# Disks that another machine does not have would stop the boot.
sed -i '' -E '/^\/dev\/(vtbd|ada|da|nda|nvd)[^[:space:]]*[[:space:]]+(none|\/)[^[:space:]]*/s/^/#/' /etc/fstab

# A script that only finds that its service is off takes an emulator a third of a second.
mkdir -p /etc/rc.d.off
service -e >/tmp/enabled
for script in /etc/rc.d/*; do
	# netif calls dhclient's script even if its rcvar is off.
	[ "$script" = /etc/rc.d/dhclient ] && continue
	if grep -q '^rcvar=' "$script" && ! grep -qxF "$script" /tmp/enabled; then
		mv "$script" /etc/rc.d.off/
	fi
done
# So does a script that has nothing to do in this machine, unless fstab or rc.conf has settings for it.
while read -r name sign; do
	if [ -e "/etc/rc.d/$name" ] && ! grep -qsE "^[^#]*($sign)" /etc/fstab /etc/rc.conf /etc/rc.conf.local; then
		mv "/etc/rc.d/$name" /etc/rc.d.off/
	fi
done <<'UNUSED'
adjkerntz adjkerntz
bridge autobridge
cleartmp clear_tmp_enable
defaultroute defaultrouter=
dumpon dumpdev="?[^N"]
geli geli_
geli2 geli_
gptboot gptboot
hostid_save hostid_save
iovctl iovctl_
mdconfig mdconfig_
mdconfig2 mdconfig_
mountlate late
msgs msgs
netoptions tcp_|log_in_vain|ip_portrange|ipv6_ipv4mapping|ipv6_privacy
nisdomain nisdomainname
pwcheck pwcheck
serial serial
static_arp static_arp_
static_ndp static_ndp_
stf stf_
swap [[:space:]]swap[[:space:]]
swaplate [[:space:]]swap[[:space:]]
utx utx
UNUSED
changed "rc.d: the scripts of services that are off, or have nothing to do, were moved to /etc/rc.d.off"

rm -rf /var/log/*.old /var/crash/* /tmp/* 2>/dev/null || true
sync
