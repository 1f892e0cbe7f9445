package main

import "github.com/spf13/cobra"

// The exit codes, as `culvert help exit-codes` has them.
const (
	exitBadNews     = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// newExitCodesTopic is a page of help, and no command.
func newExitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `The exit codes of culvert:

  0    done; the answer is good news, or is not news at all
  1    the answer is bad news (a connection that would be refused, a node that is not well, a policy with mistakes), or
       there is no answer because something failed
  2    the command was not understood
  130  interrupted

With -o json or -o yaml an answer that is bad news is written like any other.`,
	}
}
