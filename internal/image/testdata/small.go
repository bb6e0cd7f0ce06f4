// Command small does nothing, statically linked.
package main

func main() {}
