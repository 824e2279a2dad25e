package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/atomicfile"
	"github.com/evenkeel/evenkeel/shim"
)

// A record file is one line that names the format and the SHA-256 of the rest, then JSON. Records are not synced: the
// checksum tells a torn one from a whole one after a power cut, and by then the boot id has changed and what it
// described is dead.
const (
	recordFile   = "record"
	recordFormat = "evenkeel-record-v1"
)

var (
	errBroken = errors.New("record is not readable")
	errTorn   = fmt.Errorf("%w, as a power cut leaves it", errBroken)
)

// podRecord is everything that must be known of a pod after a crash.
type podRecord struct {
	ID      string
	BootID  string
	Handler string
	Config  document[*cri.PodSandboxConfig]
	Cgroup  string // the sandbox cgroup, beside its containers'
	Scopes  bool   `json:",omitempty"` // which are systemd's

	CreatedAt  time.Time
	ReadyAt    time.Time // zero: intent only
	StoppingAt time.Time // somebody asked; from here on it is NOTREADY
	StoppedAt  time.Time // all it held is released
	Doomed     bool      // it is to be removed, whatever happens

	IPs  []string // primary first
	Shim shim.Process
	Init shim.Process

	Timeline []Operation `json:",omitempty"` // on disk only
}

// containerRecord is everything that must be known of a container after a crash.
type containerRecord struct {
	ID       string
	PodID    string
	BootID   string
	Config   document[*cri.ContainerConfig]
	Cgroup   string
	LogPath  string
	ImageID  string
	ImageRef string // a digest reference where the image has one, else its id
	// ImageName is what people call the image; empty in the records of older releases.
	ImageName string `json:",omitempty"`
	Layers    []image.Layer
	Project   uint32        `json:",omitempty"` // by which the file system counts the writable layer; 0: none
	Volumes   []imageVolume // what the request's image volumes show
	User      document[*cri.ContainerUser]

	Process    shim.Process
	StopSignal int
	Resources  document[*cri.LinuxContainerResources] // as last updated

	CreatedAt  time.Time // zero: intent only
	StartedAt  time.Time
	FinishedAt time.Time
	Exit       exit // valid when FinishedAt is set
	Released   bool // nothing of it lives any more
	Doomed     bool

	// StartFault says why the entrypoint cannot run. The runtime finds that at create; Kubernetes expects to hear of
	// it at start, as a container that exited with 126 or 127.
	StartFault string
	StartCode  int

	Timeline []Operation `json:",omitempty"` // on disk only

	unwritten bool // in memory only: the record on disk is an older one
}

// exit is how a container ended, in the CRI's words.
type exit struct {
	Code    int32
	Reason  string
	Message string
}

// document keeps a protobuf message readable inside a JSON record.
type document[M proto.Message] struct{ Message M }

func (d document[M]) MarshalJSON() ([]byte, error) { return protojson.Marshal(d.Message) }

func (d *document[M]) UnmarshalJSON(data []byte) error {
	var m M
	d.Message = m.ProtoReflect().New().Interface().(M)
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, d.Message)
}

func writeRecord(dir string, record any) error {
	body, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("cannot encode the record for %s: %w", dir, err)
	}
	sum := sha256.Sum256(body)
	head := recordFormat + " " + hex.EncodeToString(sum[:]) + "\n"
	return atomicfile.Write(filepath.Join(dir, recordFile), append([]byte(head), body...), 0o600)
}

// readRecord fills record. A missing file matches os.ErrNotExist, a damaged one errBroken. One that is empty, short or
// in part not written matches errTorn as well; one of a format that this engine does not know does not.
func readRecord(dir string, record any) error {
	path := filepath.Join(dir, recordFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, body, _ := bytes.Cut(data, []byte("\n"))
	format, want, _ := bytes.Cut(head, []byte(" "))
	sum := sha256.Sum256(body)
	if bytes.HasPrefix(data, []byte("evenkeel-record-")) && len(body) > 0 && string(format) != recordFormat {
		return fmt.Errorf("%s: %w: it has the format %q", path, errBroken, format)
	}
	if string(format) != recordFormat || string(want) != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("%s: %w: the first line does not fit the rest", path, errTorn)
	}
	if err := json.Unmarshal(body, record); err != nil {
		return fmt.Errorf("%s: %w: %v", path, errBroken, err)
	}
	return nil
}
