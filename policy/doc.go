// Package policy turns PeerAuthentication and DestinationRule objects into what has to be done:
// for every workload and port one of DISABLE, PERMISSIVE and STRICT, for every client and Service
// one ClientAction, each with the object that decided it.
//
// Everything here is a pure function of its arguments: no input or output, no clock, no state, and
// nothing of Kubernetes or of the kernel. The same input gives the same answer in whatever order the
// objects come.
//
// # Which policy decides
//
// Policies of the root namespace without selector stand at the mesh level, policies of a workload's
// own namespace at the namespace level without and at the workload level with a selector. One policy
// stands for each level, the oldest; policies of one level are never merged. The mode is PERMISSIVE
// unless a level sets it, and the strongest level that does decides. Ports are decided by the winning
// workload policy alone. A selector in the root namespace has no meaning: such a policy is ignored.
//
// # Which object is older
//
// Creation times are compared in whole seconds, as the API stores them; then names, then namespaces,
// in byte order. An object without a creation time (a manifest nobody applied yet) is newer than every
// object that has one: once applied, it will be. Several such objects are equally new.
//
// # What is not understood
//
// A Mode or TLSMode outside its range cannot come from ParseMode or ParseTLSMode. Should one appear
// all the same, the Mode counts as STRICT and the TLSMode as one that cannot be carried out: neither
// opens anything.
package policy
