package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// Check runs CHECK with the configuration, arguments and result of the pod's ADD. Configurations before version 0.4.0 and plugins
// that are older than their configuration do not know the verb; "disableCheck" forbids it.
func (c *CNI) Check(ctx context.Context, pod Pod) error {
	release, err := c.turns.take(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer release()
	if err := c.checkPod(ctx, pod); err != nil {
		return fmt.Errorf("CNI network of pod %s: %w", pod.ID, err)
	}
	return nil
}

func (c *CNI) checkPod(ctx context.Context, pod Pod) error {
	rec, err := c.load(pod.ID)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("there is no record that the pod was attached")
	}
	if err != nil {
		return err
	}
	list, err := rec.list()
	if err != nil {
		return err
	}
	if list.DisableCheck {
		return fmt.Errorf("%w: the configuration of network %s says disableCheck", ErrUncheckable, list.Name)
	}
	if livingNetNS(rec.NetNS) == "" || rec.NetNSInode != inode(rec.NetNS) {
		return fmt.Errorf("the network namespace that was attached is gone from %s", rec.NetNS)
	}
	if _, err := c.cached(rec); err != nil {
		return fmt.Errorf("cannot read the stored result of network %s: %w", list.Name, err)
	}
	err = c.lib().CheckNetworkList(ctx, list, rec.runtime(rec.NetNS))
	if cannotCheck(err) {
		return fmt.Errorf("%w: %w", ErrUncheckable, pluginError(list.Name, err))
	}
	return pluginError(list.Name, err)
}

// cannotCheck finds out that CHECK is too new for a configuration or, by code 1 of the specification, for a plugin.
func cannotCheck(err error) bool {
	var plugin *PluginError
	return errors.Is(err, libcni.ErrorCheckNotSupp) || errors.As(err, &plugin) && plugin.Code == types.ErrIncompatibleCNIVersion
}
