#!/bin/bash
# debian.sh OUT KIND: makes OUT/rootfs, the Debian that a node runs, from packages and from KIND, the files that kind expects
# of a node (images/base/files of its module); and, out of it, OUT/proxy and OUT/tools, the files of two images.
set -euo pipefail
out=$1 kind=$2
rootfs=$out/rootfs
suite=bookworm # systemd 252; the next one's refuses cgroup v1, which some machines still have
# The mirror that this machine's packages come from, unless one is named.
mirror=${CULVERT_E2E_MIRROR:-$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
	awk -v suite="$suite" '$1 == suite { print $2; exit }')}
[ -n "$mirror" ] || { echo "no mirror of Debian $suite is known to apt: name one in CULVERT_E2E_MIRROR" >&2; exit 1; }

# The first two lines are what kind's own node image has; the rest is for people who look into a node, and for the tools image.
packages=(
	systemd conntrack iptables nftables iproute2 ethtool util-linux mount kmod libseccomp2 e2fsprogs bash
	ca-certificates curl jq procps containerd runc containernetworking-plugins
	busybox-static tcpdump
)

# A mirror may fail once.
for attempt in 1 2 3; do
	debootstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "$suite" "$rootfs" "$mirror" && break
	[ "$attempt" -lt 3 ] || exit 1
	rm -rf "$rootfs"
	sleep 5
done

cd "$rootfs"
# Units that make sense on a machine only, as kind removes them.
find lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f lib/systemd/system/multi-user.target.wants/* etc/systemd/system/*.wants/* \
	lib/systemd/system/local-fs.target.wants/* lib/systemd/system/sockets.target.wants/*udev* \
	lib/systemd/system/sockets.target.wants/*initctl* lib/systemd/system/basic.target.wants/*
echo ReadKMsg=no >>etc/systemd/journald.conf
rm -f etc/hostname etc/resolv.conf # the machine's; a container has its own
rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/* var/log/*
ln -sfn /usr/lib/systemd/systemd sbin/init

cp -r "$kind/etc" "$kind/kind" .
install -D -m 0755 -t usr/local/bin "$kind/usr/local/bin/entrypoint"
chmod -R u=rwX,go=rX etc/containerd etc/systemd kind # a module's files are read-only
chmod 0755 kind/bin/*
# Without CAP_SYS_RESOURCE, which a nested machine may lack, nothing may ask for a better OOM score than its parent's.
sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' etc/containerd/config.toml
ln -s /usr/bin/containerd usr/local/bin/containerd # where kind's unit looks for it
chroot . ctr oci spec |
	chroot . jq '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
		>etc/containerd/cri-base.json
mkdir -p opt/cni/bin etc/cni/net.d etc/kubernetes/manifests
cp -t opt/cni/bin usr/lib/cni/{bridge,host-local,loopback,portmap,ptp}
chroot . systemctl --quiet enable kubelet.service containerd.service undo-mount-hacks.service
chroot . systemctl --quiet mask systemd-binfmt.service # what it registers holds for the whole machine

# with_libraries TARGET FILE...: copies programs and plug-ins with every library they need.
with_libraries() {
	local target=$1 file
	shift
	mkdir -p "$target"
	for file in "$@" $(chroot . ldd "$@" 2>/dev/null | grep -o '/lib[^ ]*' | grep -v ':$' | sort -u); do
		install -D "$rootfs$(chroot . realpath "$file")" "$target$file"
	done
}

# The plug-ins need libraries that the program does not: without libm the statistic match fails and Services do nothing.
with_libraries "$out/proxy" /usr/sbin/xtables-nft-multi $(chroot . sh -c 'ls /usr/lib/*/xtables/*.so')
for name in iptables iptables-save iptables-restore; do
	ln -s xtables-nft-multi "$out/proxy/usr/sbin/$name"
	ln -s xtables-nft-multi "$out/proxy/usr/sbin/${name/ip/ip6}"
done

with_libraries "$out/tools" /usr/bin/curl /bin/busybox
install -D -t "$out/tools/etc/ssl/certs" etc/ssl/certs/ca-certificates.crt
mkdir -p "$out/tools/bin"
for applet in $(chroot . busybox --list); do
	[ -e "$out/tools/bin/$applet" ] || ln -s busybox "$out/tools/bin/$applet"
done
