package datapath

// Prepare makes the folder for the pins, and mounts the BPF file system in its usual place where that is the folder's
// and nobody did. It is for whoever may mount to do it in place of an agent that may not; Open does it as well.
func Prepare(bpffs string) error { return prepareBPFFS(bpffs) }
