package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// usage is the error of a command that was not understood.
func usage(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// understood makes what cobra says of flags, arguments and names of commands an error of usage, for c and all below it.
func understood(c *cobra.Command) {
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%w%s", err, seeHelp(c)) })
	switch {
	case c.Name() == "help" && c.HasParent():
		c.Args = helpTopics
	case c.HasSubCommands() && !c.Runnable():
		c.Args = unknownCommand
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	case c.Args != nil:
		c.Args = arguments(c.Args)
	}
	for _, below := range c.Commands() {
		understood(below)
	}
}

func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usage("%w%s", err, seeHelp(c))
		}
		return nil
	}
}

// unknownCommand is for commands that only lead to others. Newer commands know the words of this error (explainExit).
func unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	like := ""
	c.SuggestionsMinimumDistance = 2 // as cobra has it where it looks itself
	if found := c.SuggestionsFor(args[0]); len(found) > 0 {
		like = "; did you mean " + strings.Join(found, " or ") + "?"
	}
	return usage("unknown command %q for %q%s%s", args[0], c.CommandPath(), like, seeHelp(c))
}

// helpTopics are the words after help.
func helpTopics(c *cobra.Command, args []string) error {
	found, rest, err := c.Root().Find(args)
	if err == nil && found.HasSubCommands() {
		err = unknownCommand(found, rest)
	}
	return err
}

func seeHelp(c *cobra.Command) string { return "; see " + c.CommandPath() + " --help" }
