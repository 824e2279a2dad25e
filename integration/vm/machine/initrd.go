package machine

import (
	"bufio"
	"errors"
	"io"
	"os"

	"github.com/evenkeel/evenkeel/integration/vm/cpio"
)

// WriteInitrd joins archives that exist with one that fill makes. The kernel unpacks them in this order.
func WriteInitrd(path string, archives []string, fill func(*cpio.Writer)) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, a := range archives {
		if err := appendFile(f, a); err != nil {
			return err
		}
	}
	buffer := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(buffer)
	fill(w)
	return errors.Join(w.Close(), buffer.Flush(), f.Close())
}

func appendFile(to io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}
