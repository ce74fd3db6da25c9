"""What a debug kernel prints about itself, in the forms of 15.1's sources."""

from __future__ import annotations

REVERSAL = """\
lock order reversal: (sleepable after non-sleepable)
 1st 0xfffff80003b0d068 vm foo (vm lock, sleep mutex) @ /usr/src/sys/dev/vmm/vmm_mem.c:123
 2nd 0xffffffff82a1b2c0 segs (vm mem_segs, sx) @ /usr/src/sys/dev/vmm/vmm_dev.c:88
lock order vm mem_segs -> vm lock established at:
#0 0xffffffff80bf6e2d at witness_checkorder+0x32d
#1 0xffffffff80b8b1c2 at __mtx_lock_flags+0x92
#2 0xffffffff82a10000 at vmm_open+0x33
lock order vm lock -> vm mem_segs attempted at:
#0 0xffffffff80bf7a4c at witness_checkorder+0xf4c
#1 0xffffffff80b8b1c2 at _sx_xlock+0x92
#2 0xffffffff82a10123 at vm_alloc_memseg+0x44
#3 0xffffffff80a10123 at devfs_ioctl+0x44
"""
THREE = """\
lock order reversal:
 1st 0xfffff80003b0d068 a (a, sx) @ /usr/src/sys/dev/vmm/vmm_mem.c:1
 2nd 0xffffffff82a1b2c0 b (b, sx) @ /usr/src/sys/dev/vmm/vmm_dev.c:2
 3rd 0xffffffff82a1b2d0 c (c, sx) @ /usr/src/sys/dev/vmm/vmm_dev.c:3
"""
DUPLICATE = """\
acquiring duplicate lock of same type: "vm mem_segs"
 1st vm mem_segs @ /usr/src/sys/dev/vmm/vmm_mem.c:12
 2nd vm mem_segs @ /usr/src/sys/dev/vmm/vmm_mem.c:90
stack backtrace:
#0 0xffffffff80bf8a41 at witness_debugger+0x71
#1 0xffffffff82a10123 at vm_mem_lock+0x44
"""
HELD = """\
Sleeping on "vmwait" with the following non-sleepable locks held:
exclusive sleep mutex vmmdev (vmmdev mutex) r = 0 (0xffffffff82a1b2c0) locked @ /usr/src/sys/x.c:99
shared rw vm stats r = 1 (0xffffffff82a1b2d0) locked @ /usr/src/sys/dev/vmm/vmm_stat.c:5
stack backtrace:
#0 0xffffffff80bf8a41 at witness_debugger+0x71
#1 0xffffffff80bf9b41 at witness_warn+0x3e1
#2 0xffffffff80bf9b41 at _sleep+0x3e1
#3 0xffffffff82a10123 at vmmdev_ioctl+0x44
"""
ALLOCATING = """\
uma_zalloc_arg: zone "malloc-128" with the following non-sleepable locks held:
exclusive sleep mutex vmmdev r = 0 (0xffffffff82a1b2c0) locked @ /usr/src/sys/dev/vmm/vmm_dev.c:99
"""
RETURNING = """\
Thread 0xfffff80003b0d000 exiting with the following locks held:
exclusive sx vm mem_segs r = 0 (0xffffffff82a1b2c0) locked @ /usr/src/sys/dev/vmm/vmm_dev.c:99
"""
UPGRADE = """\
exclusive lock of (sx) vm mem_segs @ /usr/src/sys/dev/vmm/vmm_mem.c:31
while share locked from /usr/src/sys/dev/vmm/vmm_mem.c:12
"""
ASSERTION = """\
KASSERT failed: vm_free_memseg: bad segment 3
KDB: stack backtrace:
db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe0000123450
kdb_backtrace() at kdb_backtrace+0x37/frame 0xfffffe0000123460
kassert_panic() at kassert_panic+0x10/frame 0xfffffe0000123470
vm_free_memseg() at vm_free_memseg+0x91/frame 0xfffffe0000123480
"""
OWNER = "Sleeping thread (tid 100123, pid 4711) owns a non-sleepable lock\n"
AFTER_FREE = "Memory modified after free 0xfffff80003b0d000 (248, malloc-256, 0x1) + 16 = dead\n"
ZONE = "Freed UMA keg (vmx) was not empty (3 items).  Lost 1 pages of memory.\n"
TYPE = "Warning: memory type vm leaked memory on destroy (2 allocations, 128 bytes leaked).\n"
