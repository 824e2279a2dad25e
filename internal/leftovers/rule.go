package leftovers

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rules looks for pods in the instance's table, in every family: ids in names and comments of chains, rules, sets and
// elements, and names of pod links in matches.
func (s *search) rules() error {
	if s.NFTable == "" {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("cannot reach nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // a kernel without nftables has no rules
	}
	if err != nil {
		return fmt.Errorf("cannot list nftables tables: %w", err)
	}
	var errs []error
	for _, table := range tables {
		if table.Name == s.NFTable {
			errs = append(errs, s.chains(conn, table), s.sets(conn, table))
		}
	}
	return errors.Join(errs...)
}

func (s *search) chains(conn *nftables.Conn, table *nftables.Table) error {
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return fmt.Errorf("cannot list chains of table %s: %w", table.Name, err)
	}
	for _, chain := range chains {
		if chain.Table.Name != table.Name {
			continue
		}
		name := table.Name + "/" + chain.Name
		s.mention(name, "chain", chain.Name)
		rules, err := conn.GetRules(table, chain)
		if err != nil {
			return fmt.Errorf("cannot list rules of chain %s: %w", name, err)
		}
		for _, rule := range rules {
			s.mention(fmt.Sprintf("%s handle %d", name, rule.Handle), "rule", ruleText(rule))
		}
	}
	return nil
}

// ruleText is what of a rule can name a pod: its comment, the interfaces it matches and where it jumps.
func ruleText(rule *nftables.Rule) string {
	text := string(rule.UserData)
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Cmp:
			text += " " + string(e.Data)
		case *expr.Verdict:
			text += " " + e.Chain
		}
	}
	return text
}

func (s *search) sets(conn *nftables.Conn, table *nftables.Table) error {
	sets, err := conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("cannot list sets of table %s: %w", table.Name, err)
	}
	for _, set := range sets {
		name := table.Name + "/" + set.Name
		s.mention(name, "set", set.Name+" "+set.Comment)
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("cannot list elements of set %s: %w", name, err)
		}
		for _, e := range elements {
			s.mention(fmt.Sprintf("%s key %x", name, e.Key), "element", e.Comment)
		}
	}
	return nil
}

// linkInRule is a pod's link in a match, which pads names with zero bytes.
var linkInRule = regexp.MustCompile(`\bek([0-9a-f]{13})\b`)

func (s *search) mention(name, what, text string) {
	if id := idShape.FindString(text); id != "" && !s.owned(text) {
		s.add(Rule, name, "%s for %s", what, id)
		return
	}
	if link := linkInRule.FindStringSubmatch(text); link != nil && !s.ownedPrefix(link[1]) {
		s.add(Rule, name, "%s for link %s", what, link[0])
	}
}
