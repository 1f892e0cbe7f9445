package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
)

const (
	// delTimeout is short: a DEL succeeds either way, and the pod's end waits for it.
	delTimeout = 2 * time.Second
	// statusTimeout spans a restart of the agent's process; the runtime asks every few seconds.
	statusTimeout = 2 * time.Second
)

// plugin implements the commands of CNI. stderr ends in the runtime's log.
type plugin struct{ stderr io.Writer }

func (p *plugin) say(format string, args ...any) {
	fmt.Fprintf(p.stderr, "culvert-cni: "+format+"\n", args...)
}

// add lets the pod start when the agent says that it is enforced or not to be enrolled. The result goes out
// last: until then the runtime has nothing to go on with.
func (p *plugin) add(args *skel.CmdArgs) error {
	c, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	previous, err := c.previous()
	if err != nil {
		return err
	}
	if previous == nil {
		return errNoPrevious(args)
	}
	if err := p.enrol(c, args, previous); err != nil {
		return err
	}
	return types.PrintResult(previous, c.CNIVersion)
}

func (p *plugin) enrol(c *config, args *skel.CmdArgs, previous types.Result) error {
	r, netns, err := request(c, cni.Add, args, previous)
	if r == nil {
		return err
	}
	defer netns.Close()
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	answer, err := ask(ctx, c.Socket, r, netns)
	switch {
	case err == nil && answer.Enrolled:
		return nil
	case err == nil && answer.Reason != "":
		return nil // not to be enrolled
	case err == nil:
		return types.NewError(types.ErrInternal, "culvert-cni: the agent's answer says nothing", "")
	}
	return p.away(c, fmt.Sprintf("pod %s/%s", r.PodNamespace, r.PodName), err)
}

// away decides what an error means for ADD and CHECK: whether there was no agent to ask, which failOpen
// forgives, or one that said no, which nothing does.
func (p *plugin) away(c *config, what string, err error) error {
	if !noAnswer(err) {
		return cniError(err)
	}
	if c.FailOpen {
		p.say("WARNING: %s goes on WITHOUT ENFORCEMENT, because the agent is away and failOpen is set: %v", what, err)
		return nil
	}
	return types.NewError(types.ErrTryAgainLater,
		fmt.Sprintf("culvert-cni: %s is not enforced: the agent is away or not ready for it within %s", what, c.timeout), err.Error())
}

// request builds what the agent is asked, and opens the network namespace. A nil request with a nil error: the
// container is no pod, and there is nothing to ask.
func request(c *config, command string, args *skel.CmdArgs, previous types.Result) (*cni.Request, *os.File, error) {
	who, found, err := readPod(args.Args)
	if err != nil {
		return nil, nil, err
	}
	if !found {
		if c.RequirePod {
			return nil, nil, types.NewError(types.ErrInvalidEnvironmentVariables,
				"culvert-cni: not a pod of Kubernetes (CNI_ARGS names none), and requirePod is set", "container "+args.ContainerID)
		}
		return nil, nil, nil
	}
	addresses, err := podAddresses(previous)
	if err != nil {
		return nil, nil, err
	}
	// Not to hang on what is no namespace but a pipe.
	fd, err := unix.Open(args.Netns, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, types.NewError(types.ErrInvalidNetNS, "culvert-cni: network namespace cannot be opened", fmt.Sprintf("%s: %v", args.Netns, err))
	}
	return &cni.Request{
		Command: command, ContainerID: args.ContainerID, IfName: args.IfName, NetnsPath: args.Netns,
		PodNamespace: who.namespace, PodName: who.name, PodUID: who.uid, Addresses: addresses,
	}, os.NewFile(uintptr(fd), args.Netns), nil
}

// check fails if the pod ought to be enforced and is not.
func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	previous, err := c.previous()
	if err != nil {
		return err
	}
	if previous == nil {
		return errNoPrevious(args)
	}
	r, netns, err := request(c, cni.Check, args, previous)
	if r == nil {
		return err
	}
	defer netns.Close()
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	if _, err = ask(ctx, c.Socket, r, netns); err != nil {
		return p.away(c, fmt.Sprintf("pod %s/%s", r.PodNamespace, r.PodName), err)
	}
	return nil
}

// del tells the agent that the sandbox is no more. It never fails: a pod that cannot be deleted because an agent is
// away, or was uninstalled, would be worse than what is left, which the agent finds by itself (the namespace is
// gone) or hears with the next GC. For the same reason nothing of the configuration but the socket counts.
func (p *plugin) del(args *skel.CmdArgs) error {
	c, err := readConfig(args.StdinData)
	if err != nil {
		p.say("DEL of container %s: %v", args.ContainerID, err)
		return nil
	}
	who, found, err := readPod(args.Args)
	if err == nil && !found {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(delTimeout, c.timeout))
	defer cancel()
	answer, err := cni.Call(ctx, c.Socket, &cni.Request{
		Command: cni.Delete, ContainerID: args.ContainerID, IfName: args.IfName, NetnsPath: args.Netns,
		PodNamespace: who.namespace, PodName: who.name, PodUID: who.uid,
	}, nil)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if err != nil {
		p.say("DEL of container %s: agent was not told: %v", args.ContainerID, err)
	}
	return nil
}

// gc hands on which attachments still exist. Like del, it is of no consequence that an agent is away.
func (p *plugin) gc(args *skel.CmdArgs) error {
	c, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	if c.ValidAttachments == nil {
		// Without a list nothing can be said to be gone; an empty one is something else.
		p.say("GC without a list of valid attachments: nothing done")
		return nil
	}
	r := &cni.Request{Command: cni.GC}
	for _, a := range c.ValidAttachments {
		r.Valid = append(r.Valid, cni.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	answer, err := cni.Call(ctx, c.Socket, r, nil)
	switch {
	case errors.Is(err, cni.ErrAway):
		p.say("GC: agent was not told: %v", err)
		return nil
	case err != nil:
		return cniError(err)
	case answer.Error != nil:
		return cniError(answer.Error)
	}
	return nil
}

// status says whether an ADD could succeed: with failOpen it could without an agent.
func (p *plugin) status(args *skel.CmdArgs) error {
	c, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(statusTimeout, c.timeout))
	defer cancel()
	_, err = ask(ctx, c.Socket, &cni.Request{Command: cni.Status}, nil)
	if err == nil {
		return nil
	}
	if c.FailOpen && noAnswer(err) {
		p.say("WARNING: agent is away; pods start WITHOUT ENFORCEMENT, because failOpen is set: %v", err)
		return nil
	}
	return types.NewError(types.ErrPluginNotAvailable, "culvert-cni: agent is not available", err.Error())
}
