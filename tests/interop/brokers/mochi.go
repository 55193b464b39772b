// A mochi-mqtt whose limits and rules are options:
//
//	broker -listen 127.0.0.1:1883 [-user u:p] [-deny PREFIX] [-max-packet BYTES] [-receive-maximum N] [-max-qos N]
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

type rules struct {
	mqtt.HookBase
	user, deny string
}

func (r *rules) ID() string { return "rules" }

func (r *rules) Provides(b byte) bool {
	return bytes.Contains([]byte{mqtt.OnConnectAuthenticate, mqtt.OnACLCheck}, []byte{b})
}

func (r *rules) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	return r.user == "" || r.user == string(pk.Connect.Username)+":"+string(pk.Connect.Password)
}

func (r *rules) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	return r.deny == "" || !write || !strings.HasPrefix(topic, r.deny)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:1883", "")
	user := flag.String("user", "", "user:password; nothing: anybody")
	deny := flag.String("deny", "", "topics that begin so may not be published to")
	packet := flag.Uint("max-packet", 0, "")
	receive := flag.Uint("receive-maximum", 1024, "")
	qos := flag.Uint("max-qos", 2, "")
	flag.Parse()

	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumPacketSize = uint32(*packet)
	capabilities.ReceiveMaximum = uint16(*receive)
	capabilities.MaximumQos = byte(*qos)
	server := mqtt.New(&mqtt.Options{
		Capabilities: capabilities,
		Logger:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err := server.AddHook(&rules{user: *user, deny: *deny}, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := server.AddListener(listeners.NewTCP(listeners.Config{ID: "tcp", Address: *listen})); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		if err := server.Serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	server.Close()
}
