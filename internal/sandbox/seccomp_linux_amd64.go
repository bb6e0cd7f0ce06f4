package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// archCalls are calls that only this architecture has. Those of the x32 ABI have
// other numbers, and so are refused.
var archCalls = []uint32{unix.SYS_EPOLL_WAIT}
