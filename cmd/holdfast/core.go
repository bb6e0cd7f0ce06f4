package main

import "syscall"

// noCoreDumps keeps what this process holds in memory out of core files, and
// what it starts (a Terraform provider holds credentials) as well: the limit is
// inherited, and cannot be raised again without privileges.
//
// The limit is 1 byte and not 0: Linux makes no core file below the size of a
// page, and hands a core to a program (core_pattern "|…", as systemd-coredump)
// whatever the limit is, except when it is exactly 1; see do_coredump in
// fs/coredump.c.
func noCoreDumps() {
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: 1, Max: 1}) // refused only where it is lower already
}
