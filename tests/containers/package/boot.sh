# Starts systemd in a container that may mount. The engine shows control groups read-only, on some
# machines those of the first version, which systemd refuses: it gets those of the second, for itself.
set -eu
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec /lib/systemd/systemd
