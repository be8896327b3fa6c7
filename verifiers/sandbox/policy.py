"""Which system calls a jailed process may make: two libseccomp filters. Runs inside the jail.

Filter A holds for the fork server and its children: an allow-list, everything else does not exist (ENOSYS). Filter B is
added in the child, which has no more to fork. Rules on int arguments compare 32 bits: the kernel ignores the upper
half, so a refusal by exact 64-bit value could be dodged by setting it.
"""

from __future__ import annotations

import errno
import os
from typing import Any

# ruff: noqa: SIM905  # a list of 200 quoted names would hide what it says
# What a Python program needs. A name an older libseccomp does not know is left out.
ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 pipe
pipe2 open openat stat lstat fstat newfstatat fstatat64 statx statfs fstatfs access faccessat faccessat2 readlink
readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
symlink symlinkat ftruncate fallocate fsync fdatasync sync_file_range flock umask sendfile splice tee copy_file_range
fadvise64 readahead mmap munmap mprotect mremap madvise brk msync mincore mlock munlock mlock2 mlockall munlockall
membarrier rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause
alarm getitimer setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete kill tgkill
restart_syscall nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getpid getppid gettid
getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp getsid setsid setpgid getrlimit setrlimit
getrusage uname sysinfo getrandom getcpu getpriority sched_yield sched_getaffinity sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min set_tid_address set_robust_list get_robust_list futex futex_waitv rseq
arch_prctl exit exit_group wait4 waitid poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait
epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime sendmsg
recvmsg recvfrom sendmmsg recvmmsg shutdown getsockname getpeername getsockopt setsockopt pidfd_open seccomp
landlock_create_ruleset landlock_add_rule landlock_restrict_self
""".split()

# Refused with EPERM, an ordinary PermissionError, where ENOSYS would be a riddle.
REFUSED = """
execve execveat vfork socket connect bind listen accept accept4 ptrace process_vm_readv process_vm_writev
process_madvise mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen fsconfig fsmount fspick
mount_setattr chown fchown lchown fchownat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
memfd_create memfd_secret sched_setaffinity sched_setscheduler sched_setparam sched_setattr setpriority ioprio_set
setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset mknod mknodat link linkat
pidfd_send_signal pidfd_getfd tkill rt_sigqueueinfo rt_tgsigqueueinfo io_uring_setup io_uring_enter io_uring_register
perf_event_open bpf userfaultfd keyctl add_key request_key shmget shmat shmctl msgget msgsnd msgrcv semget semop semctl
mq_open mq_unlink truncate creat openat2 open_by_handle_at name_to_handle_at personality modify_ldt kcmp swapon reboot
init_module finit_module kexec_load acct quotactl syslog sethostname setdomainname settimeofday clock_settime
""".split()

PRIVATE_FILES = "chmod fchmod fchmodat fchmodat2 utime utimes futimesat utimensat".split()
"""Landlock does not govern these: allowed only where every writable file is the jail's own."""

LOW = 0xFFFFFFFF
CLONE_THREAD = 0x10000
NEW_NAMESPACES = 0x7E020080  # user, pid, net, ipc, uts, cgroup, mount, time
FORK = 0x01200011  # what fork() of the C library asks: CHILD_SETTID | CHILD_CLEARTID | SIGCHLD
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
# dup, flags, locks, pipe size. No F_SETOWN: the kernel would send its signals to any process of this user.
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
PDEATHSIG, SECCOMP = 1, 22
PRCTLS = (PDEATHSIG, 15, 16, SECCOMP, 38, 39)  # 15, 16: thread names; 38, 39: no_new_privs


def filter_a(seccomp: Any, private_files: bool) -> Any:
    """The allow-list, not yet loaded. `seccomp`: the binding; `private_files`: the jail has a /tmp of its own."""
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.ENOSYS))
    # x32 and 32-bit calls carry other numbers: refuse them all.
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(errno.EPERM))
    for name in ALLOWED + (PRIVATE_FILES if private_files else []):
        _known(seccomp, rules, seccomp.ALLOW, name)
    for name in REFUSED + ([] if private_files else PRIVATE_FILES):
        _known(seccomp, rules, seccomp.ERRNO(errno.EPERM), name)

    def allow(name: str, *tests: tuple[int, int, int]) -> None:
        masked = [seccomp.Arg(index, seccomp.MASKED_EQ, mask, value) for index, mask, value in tests]
        rules.add_rule(seccomp.ALLOW, name, *masked)

    everything = (1 << 64) - 1
    allow("clone", (0, everything, FORK))
    allow("clone", (0, CLONE_THREAD | NEW_NAMESPACES, CLONE_THREAD))
    # A datagram pair could send to any socket path on the host, so could sendto with an address.
    allow("socketpair", (0, LOW, 1), (1, LOW & ~(os.O_CLOEXEC | os.O_NONBLOCK), 1))
    allow("sendto", (4, everything, 0))
    allow("prlimit64", (0, LOW, 0))
    for name, values in (("ioctl", IOCTLS), ("fcntl", FCNTLS)):
        for value in values:
            allow(name, (1, LOW, value))
    for value in PRCTLS:
        allow("prctl", (0, LOW, value))
    return rules


def filter_b(seccomp: Any, pid: int) -> Any:
    """What the child loses before it runs a candidate: more processes, signals to others, undoing its own setup."""
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(errno.EPERM))

    def refuse(name: str, *tests: tuple[int, int, int]) -> None:
        masked = [seccomp.Arg(index, seccomp.MASKED_EQ, mask, value) for index, mask, value in tests]
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name, *masked)

    for name in ("fork", "vfork", "pidfd_open", "seccomp", "landlock_create_ruleset", "landlock_restrict_self"):
        _known(seccomp, rules, seccomp.ERRNO(errno.EPERM), name)
    refuse("clone", (0, CLONE_THREAD, 0))
    for value in (PDEATHSIG, SECCOMP):
        refuse("prctl", (0, LOW, value))
    for name in ("kill", "tgkill"):  # not-equal over all 64 bits refuses a set upper half as well
        rules.add_rule(seccomp.ERRNO(errno.EPERM), name, seccomp.Arg(0, seccomp.NE, pid))
    # Landlock before ABI 3 counts neither truncation by a reader nor access mode 3 as a write.
    for name, index in (("open", 1), ("openat", 2)):
        if _exists(seccomp, name):
            refuse(name, (index, os.O_TRUNC | os.O_ACCMODE, os.O_TRUNC))
            refuse(name, (index, os.O_ACCMODE, os.O_ACCMODE))
    return rules


def _exists(seccomp: Any, name: str) -> bool:
    try:
        return bool(seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0)
    except Exception:
        return False


def _known(seccomp: Any, rules: Any, action: int, name: str) -> None:
    if _exists(seccomp, name):
        rules.add_rule(action, name)
