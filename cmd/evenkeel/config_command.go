package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
)

// origins says for dotted keys where their values come from: a file, or a flag. A key that is not in it has its default.
type origins map[string]string

// note takes the keys that a file sets.
func (o origins) note(path, prefix string, tree map[string]any) {
	for name, value := range tree {
		key := strings.TrimPrefix(prefix+"."+keyPart(name), ".")
		if below, ok := value.(map[string]any); ok {
			o.note(path, key, below)
			continue
		}
		o[key] = path
	}
}

// setting is one line of `evenkeel config`.
type setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"` // a file, --flag, or default
}

func (o origins) settings(c config) []setting { return o.settingsOf("", reflect.ValueOf(c)) }

func (o origins) settingsOf(prefix string, v reflect.Value) (list []setting) {
	for i := range v.NumField() {
		field := v.Field(i)
		key := strings.TrimPrefix(prefix+"."+v.Type().Field(i).Tag.Get("toml"), ".")
		switch field.Kind() {
		case reflect.Struct:
			list = append(list, o.settingsOf(key, field)...)
		case reflect.Map:
			for _, name := range slices.SortedFunc(maps.Keys(keysIn(field)), cmp.Compare[string]) {
				list = append(list, o.settingsOf(key+"."+keyPart(name), field.MapIndex(reflect.ValueOf(name)))...)
			}
		default:
			list = append(list, setting{key, field.Interface(), cmp.Or(o[key], "default")})
		}
	}
	return list
}

// keyPart is a name in a dotted key. TOML takes some without quotation marks; a handler can be called kata.v2.
func keyPart(name string) string {
	if bareKey.MatchString(name) {
		return name
	}
	return strconv.Quote(name)
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func keysIn(m reflect.Value) map[string]bool {
	keys := map[string]bool{}
	for _, key := range m.MapKeys() {
		keys[key.String()] = true
	}
	return keys
}

func configCommand() *cobra.Command {
	var t tool
	var flags configFlags
	c := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration, and where each value comes from",
		Long: "Print what `evenkeel serve` would work with, given the same flags, and where each value comes from: a file, a flag,\n" +
			"or the program's defaults. What is printed is a configuration file itself. No engine needs to run.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			loaded, from, err := flags.load()
			if err != nil {
				return err
			}
			return t.printSettings(c, from.settings(loaded))
		},
	}
	flags.register(c)
	t.registerOutput(c)
	c.AddCommand(configDefaultCommand(), configCheckCommand())
	return c
}

func (t *tool) printSettings(c *cobra.Command, list []setting) error {
	if t.json() {
		return printJSON(c.OutOrStdout(), list)
	}
	lines, width := make([]string, len(list)), 0
	for i, s := range list {
		value, err := toml.Marshal(map[string]any{"v": s.Value})
		if err != nil {
			return err
		}
		lines[i] = s.Key + " = " + strings.TrimPrefix(strings.TrimSpace(string(value)), "v = ")
		width = max(width, min(len(lines[i]), 60))
	}
	for i, s := range list {
		fmt.Fprintf(c.OutOrStdout(), "%-*s  # %s\n", width, lines[i], s.Source)
	}
	return nil
}

func configDefaultCommand() *cobra.Command {
	return &cobra.Command{
		Use: "default", Short: "Print the defaults, with what each key means, as a configuration file", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var text bytes.Buffer
			if err := toml.NewEncoder(&text).Encode(defaultConfig()); err != nil {
				return err
			}
			_, err := c.OutOrStdout().Write(text.Bytes())
			return err
		},
	}
}

func configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check FILE...", Short: "Check configuration files, each by itself", Args: cobra.MinimumNArgs(1),
		Long: "Check configuration files, or files for conf.d, each by itself over the defaults: unknown keys, wrong types, and\n" +
			"values that cannot work. The exit code is 1 if there is one.",
		RunE: func(c *cobra.Command, files []string) error {
			bad := false
			for _, file := range files {
				alone := defaultConfig()
				err := alone.read(file, origins{})
				if err == nil {
					err = alone.check()
				}
				if err != nil {
					bad = true
					fmt.Fprintln(c.ErrOrStderr(), "evenkeel:", checkMessage(file, err))
					continue
				}
				fmt.Fprintln(c.OutOrStdout(), file+": good")
			}
			if bad {
				return exitCode(1)
			}
			return nil
		},
	}
}

// checkMessage names the file where the error does not.
func checkMessage(file string, err error) string {
	if strings.Contains(err.Error(), file) {
		return err.Error()
	}
	return file + ": " + err.Error()
}
