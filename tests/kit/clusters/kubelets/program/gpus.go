package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// A device plugin. A container sees its devices in NVIDIA_VISIBLE_DEVICES, as with NVIDIA's own plugin.
type plugin struct {
	api.UnimplementedDevicePluginServer
	devices []*api.Device
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(&api.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	reply := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		visible := map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")}
		reply.ContainerResponses = append(reply.ContainerResponses, &api.ContainerAllocateResponse{Envs: visible})
	}
	return reply, nil
}

// offer registers the devices with the kubelet, and again whenever a kubelet has started and emptied the folder.
func offer(resource string, ids []string) error {
	p := &plugin{}
	for _, id := range ids {
		p.devices = append(p.devices, &api.Device{ID: id, Health: api.Healthy})
	}
	socket := filepath.Join(api.DevicePluginPath, "gpus.sock")
	kubelet, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	for ; ; time.Sleep(100 * time.Millisecond) {
		os.Remove(socket)
		listener, err := net.Listen("unix", socket)
		if err != nil { // the kubelet has not made the folder yet
			continue
		}
		server := grpc.NewServer()
		api.RegisterDevicePluginServer(server, p)
		go server.Serve(listener)
		request := &api.RegisterRequest{Version: api.Version, Endpoint: filepath.Base(socket), ResourceName: resource}
		for registered := false; ; time.Sleep(100 * time.Millisecond) {
			if _, err := os.Lstat(socket); err != nil {
				break
			}
			if !registered {
				_, err := api.NewRegistrationClient(kubelet).Register(context.Background(), request)
				registered = err == nil
			}
		}
		server.Stop()
	}
}
