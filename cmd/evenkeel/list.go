package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// list is what images, pods and ps have in common.
type list struct {
	quiet   bool // ids only
	noTrunc bool
}

func (l *list) register(c *cobra.Command, noTrunc string) {
	c.Flags().BoolVarP(&l.quiet, "quiet", "q", false, "print ids only")
	c.Flags().BoolVar(&l.noTrunc, "no-trunc", false, noTrunc)
}

// listing is the action of a command that prints rows: as a table, as ids, or as JSON.
func listing[Row any](t *tool, l *list, rows func(*engine, context.Context) ([]Row, error), id func(Row) string,
	lines func(rows []Row, noTrunc bool, now time.Time) *table) action {
	return t.asking(func(c *cobra.Command, e *engine, _ []string) error {
		found, err := rows(e, c.Context())
		switch {
		case err != nil:
			return err
		case t.json():
			return printJSON(c.OutOrStdout(), found)
		case l.quiet:
			for _, r := range found {
				fmt.Fprintln(c.OutOrStdout(), truncated(id(r), l.noTrunc))
			}
			return nil
		}
		return lines(found, l.noTrunc, time.Now()).print(c.OutOrStdout())
	})
}

func truncated(id string, noTrunc bool) string {
	if noTrunc {
		return id
	}
	return shortID(id)
}
