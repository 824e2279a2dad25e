package network

import (
	"bytes"
	"fmt"
	"net"
)

// macAnnotation asks for the hardware address of the pod's eth0. There is no common name for it: every CNI plugin that
// reads pods' annotations has one of its own, and is shown all of them anyway (io.kubernetes.cri.pod-annotations).
const macAnnotation = "network.evenkeel.dev/mac"

// ReadMAC reads the annotation network.evenkeel.dev/mac; nil: there is none. An address of the kind that the built-in network
// gives to its gateway and to pods is refused: a pod with the gateway's would get what all pods send out.
func ReadMAC(annotations map[string]string) (net.HardwareAddr, error) {
	value, ok := annotations[macAnnotation]
	if !ok {
		return nil, nil
	}
	mac, err := net.ParseMAC(value)
	switch {
	case err != nil || len(mac) != 6:
		return nil, fmt.Errorf("cannot read annotation %s %q: it is no hardware address such as 02:00:00:00:00:01", macAnnotation, value)
	case mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)):
		return nil, fmt.Errorf("annotation %s %q is not the address of one interface", macAnnotation, value)
	case bytes.HasPrefix(mac, derivedFrom4) || bytes.HasPrefix(mac, derivedFrom6):
		return nil, fmt.Errorf("annotation %s %q is in a range that the engine gives out itself", macAnnotation, value)
	}
	return mac, nil
}
