package control

import (
	"bytes"
	"testing"
)

// TestReceivedBytesAreWiped: the buffer, which lives as long as the connection, keeps nothing of a message.
func TestReceivedBytesAreWiped(t *testing.T) {
	agent, tunnel := connPair(t)
	key := bytes.Repeat([]byte{0x5a}, 64)
	if err := agent.Send(&FromAgent{Message: &FromAgent_Svid{Svid: &SVID{Identity: "x", Key: key}}}); err != nil {
		t.Fatal(err)
	}
	m, _, err := tunnel.ReceiveFromAgent()
	if err != nil || !bytes.Equal(m.GetSvid().GetKey(), key) {
		t.Fatalf("%v, %v", m, err)
	}
	if bytes.IndexByte(tunnel.buffer, 0x5a) >= 0 {
		t.Error("the receiver's buffer holds the key")
	}
}
