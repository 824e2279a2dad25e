package cri

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
)

func (s *Server) ListImages(ctx context.Context, req *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	images, err := s.listImages(req.Filter)
	if err != nil {
		return nil, err
	}
	return &cri.ListImagesResponse{Images: images}, nil
}

// listImages gives all images, or the one that the filter names, or none: nothing has a name that is none.
func (s *Server) listImages(filter *cri.ImageFilter) ([]*cri.Image, error) {
	if name := filter.GetImage().GetImage(); name != "" {
		img, err := s.Images.Get(name)
		if errors.Is(err, image.ErrNotFound) || errors.Is(err, image.ErrReference) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*cri.Image{imageOf(img)}, nil
	}
	var images []*cri.Image
	for _, img := range s.Images.List() {
		images = append(images, imageOf(img))
	}
	return images, nil
}

// ImageStatus of an image that is not there is an empty answer, not an error: it is how the kubelet asks whether to pull.
func (s *Server) ImageStatus(ctx context.Context, req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if err := need("image", req.GetImage().GetImage()); err != nil {
		return nil, err
	}
	img, err := s.Images.Get(req.Image.Image)
	if errors.Is(err, image.ErrNotFound) {
		return s.missingImage(req)
	}
	if err != nil {
		return nil, err
	}
	resp := &cri.ImageStatusResponse{Image: imageOf(img)}
	if req.Verbose {
		resp.Info, err = verbose(imageInfo(img), nil)
	}
	return resp, err
}

// missingImage tells who wants to know all of a broken image by that name, which counts as missing and can be removed.
func (s *Server) missingImage(req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	resp := &cri.ImageStatusResponse{}
	if !req.Verbose {
		return resp, nil
	}
	img, err := s.Images.Broken(req.Image.Image)
	if errors.Is(err, image.ErrNotFound) {
		return resp, nil
	}
	if err == nil {
		resp.Info, err = verbose(map[string]any{"broken": img.ID}, nil)
	}
	return resp, err
}

// imageInfo has the keys that the peers use: the image's config document, and what it is made of.
func imageInfo(img *image.Image) map[string]any {
	var layers []string
	for _, layer := range img.Layers {
		layers = append(layers, layer.DiffID.String())
	}
	return map[string]any{
		"imageSpec": img.Config,
		"layers":    layers,
		"pulledAt":  img.PulledAt,
	}
}

// imageOf says about an image what the CRI wants to know.
func imageOf(img *image.Image) *cri.Image {
	uid, username := imageUser(img.Config.Config.User)
	return &cri.Image{
		Id:          img.ID.String(),
		RepoTags:    img.Tags,
		RepoDigests: img.Digests,
		Size:        uint64(max(img.Size, 1)), // clients refuse 0, which an image without files has
		Uid:         uid,
		Username:    username,
		Spec:        &cri.ImageSpec{Image: img.ID.String()},
		Pinned:      img.Pinned,
	}
}

// imageUser splits the image's USER. A number is the uid, anything else is a name, and nothing is neither, which the
// kubelet takes for root. It must never be both: runAsNonRoot is decided from it.
func imageUser(user string) (*cri.Int64Value, string) {
	name, _, _ := strings.Cut(user, ":")
	if uid, err := strconv.ParseInt(name, 10, 64); err == nil {
		return &cri.Int64Value{Value: uid}, ""
	}
	return nil, name
}

// PullImage answers with the image's id, which is what containers report too. The sandbox_config changes nothing: an
// image is the same for every pod.
func (s *Server) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	name := req.GetImage().GetImage()
	if err := need("image", name); err != nil {
		return nil, err
	}
	auth, err := authOf(req.Auth, name)
	if err != nil {
		return nil, err
	}
	img, err := s.Images.Pull(ctx, name, image.PullOptions{Auth: auth})
	if err != nil {
		return nil, err
	}
	return &cri.PullImageResponse{ImageRef: img.ID.String()}, nil
}

func (s *Server) RemoveImage(ctx context.Context, req *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	if err := need("image", req.GetImage().GetImage()); err != nil {
		return nil, err
	}
	err := s.Images.Remove(ctx, req.Image.Image)
	if errors.Is(err, image.ErrNotFound) {
		err = nil
	}
	return &cri.RemoveImageResponse{}, err
}

// ImageFsInfo names one file system for images and containers alike. The kubelet looks the mount point up by cAdvisor
// and stops collecting garbage when it is unknown, so it is a directory that exists.
func (s *Server) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	bytes, inodes := s.Images.FsInfo()
	usage := []*cri.FilesystemUsage{{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &cri.FilesystemIdentifier{Mountpoint: s.Images.Root},
		UsedBytes:  &cri.UInt64Value{Value: bytes},
		InodesUsed: &cri.UInt64Value{Value: inodes},
	}}
	return &cri.ImageFsInfoResponse{ImageFilesystems: usage, ContainerFilesystems: usage}, nil
}
