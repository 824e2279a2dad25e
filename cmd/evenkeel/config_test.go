package main

import (
	"reflect"
	"testing"
)

// TestEveryKeyIsExplained: `config default` is the reference of the configuration.
func TestEveryKeyIsExplained(t *testing.T) {
	for key, tag := range tagsOf("", reflect.TypeFor[config]()) {
		if tag.Get("comment") == "" {
			t.Errorf("%s has no comment that says what it means", key)
		}
	}
}

func tagsOf(prefix string, of reflect.Type) map[string]reflect.StructTag {
	tags := map[string]reflect.StructTag{}
	for i := range of.NumField() {
		f := of.Field(i)
		key, inner := prefix+f.Tag.Get("toml"), f.Type
		if inner.Kind() == reflect.Map {
			inner = inner.Elem()
		}
		if inner.Kind() != reflect.Struct {
			tags[key] = f.Tag
			continue
		}
		for below, tag := range tagsOf(key+".", inner) {
			tags[below] = tag
		}
	}
	return tags
}
