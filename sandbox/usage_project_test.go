package sandbox

import "testing"

func TestProjectsAreDerivedInOurRange(t *testing.T) {
	seen := map[uint32]bool{}
	for _, id := range []string{newID(), newID(), "ffffffff" + newID()[8:], "00000000" + newID()[8:]} {
		for try := range 3 {
			project := projectAt(id, try)
			if project < firstProject || project-firstProject >= projectCount || project != projectAt(id, try) {
				t.Errorf("%s, try %d: %#x", id[:8], try, project)
			}
			seen[project] = true
		}
	}
	if len(seen) != 12 && !seen[firstProject] {
		t.Errorf("%d of 12 differ", len(seen))
	}
}
