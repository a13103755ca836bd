"""What every sandbox is allowed and shown, whichever driver starts it: one list for all of them.

See: opencontainers/runtime-spec, config-linux.md, for the meaning of masked and read-only paths.
"""

from __future__ import annotations

CAPABILITIES = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7,
    "SETPCAP": 8, "NET_BIND_SERVICE": 10, "SYS_CHROOT": 18, "SETFCAP": 31,
}  # fmt: skip
"""Of the sandbox's root, with their numbers: Docker's default without NET_RAW, MKNOD and AUDIT_WRITE.

Apt, pip, npm, useradd, su and sudo work with these.
"""

ZYGOTE_CAPABILITIES = {"SETGID": 6, "SETUID": 7, "SETPCAP": 8, "SYS_CHROOT": 18, "SYS_ADMIN": 21}
"""Of a zygote, in its own user namespace and so over those of its sandboxes: what entering them takes.

CAP_SYS_PTRACE and CAP_KILL are not among them.
"""

MASKED_PATHS = tuple(
    f"/proc/{name}"
    for name in (
        "acpi", "asound", "bus", "config.gz", "diskstats", "fs", "interrupts",
        "iomem", "ioports", "irq", "kallsyms",
        "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount",
        "kpageflags", "latency_stats", "mdstat",
        "modules", "partitions", "sched_debug", "scsi", "slabinfo", "softirqs",
        "swaps", "sysrq-trigger", "timer_list",
        "timer_stats", "tty", "vmallocinfo",
    )
)  # fmt: skip
"""Host state that procfs shows to every namespace.

Files are covered with /dev/null and folders with an empty file system.
"""

READONLY_PATHS = ("/proc/sys",)
HARD_OPEN_FILES = 65_536
SOFT_OPEN_FILES = 1024
