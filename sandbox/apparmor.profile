# The default profile of Evenkeel's containers. It keeps a process that is root in its container from what no
# container needs: mounting, and writing to the parts of /proc and /sys that belong to the machine. All else is left to
# capabilities, seccomp, namespaces and the request.

profile evenkeel-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  unix,

  # From the engine, its shims and the OCI runtime, which are not confined or have a profile of their own; and among
  # containers under this profile.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer=evenkeel-default,
  ptrace (trace, read, tracedby, readby) peer=evenkeel-default,

  deny mount,

  # Of /proc, processes write in their own directories, and in sys/kernel/shm* only beside them.
  deny /proc/* w,
  deny /proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny /proc/{sysrq-trigger,mem,kmem,kcore} rwklx,

  # Of /sys, nothing but the container's own cgroup, where it may write that.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
