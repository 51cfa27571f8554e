package agentapi

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// work is how long slow works on a hello.
	work  = time.Second
	hello = "\x16\x03\x01\x00\x02hi"
)

// slow works on a hello and then waits for one more byte.
type slow struct {
	credentials.TransportCredentials
}

func (slow) Clone() credentials.TransportCredentials { return slow{} }

func (slow) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	b := make([]byte, len(hello)+1)
	if _, err := io.ReadFull(c, b[:len(hello)]); err != nil || string(b[:len(hello)]) != hello {
		return nil, nil, errors.New("no hello")
	}
	time.Sleep(work)
	_, err := io.ReadFull(c, b[len(hello):])
	return c, nil, err
}

// visit is a peer that sends something, and how it ended.
func visit(t *testing.T, d credentials.TransportCredentials, says string) <-chan error {
	mine, theirs := net.Pipe()
	t.Cleanup(func() { mine.Close() })
	end := make(chan error, 1)
	if says != "" {
		go func() { _, _ = mine.Write([]byte(says)) }()
	}
	go func() {
		_, _, err := d.ServerHandshake(theirs)
		theirs.Close()
		end <- err
	}()
	return end
}

func TestManyPeersShakeHandsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		ready := true
		met := make(chan string, 100_000)
		d := newDoor(slow{}, func() bool { return ready }, stop, func(r string) { met <- r }).Clone()
		turns := cap(d.(door).turns)
		for range 3 * turns { // whoever sends nothing or half a hello stands in nobody's way
			visit(t, d, "")
			visit(t, d, hello[:6])
		}
		synctest.Wait()
		began := time.Now()
		if err := <-visit(t, d, hello+"!"); err != nil || time.Since(began) != work {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		for range turns { // who says nothing after it, not for long
			visit(t, d, hello)
		}
		synctest.Wait()
		began = time.Now()
		if err := <-visit(t, d, hello+"!"); err != nil || time.Since(began) != handshakeTurn+work {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		if err := <-visit(t, d, "GET / HTTP/1.1\r\n\r\n"); !errors.Is(err, errNoTLS) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("who speaks no TLS: %v", err)
		}

		// More come than can be served: as many as can are served, the others told to go, and none waits for longer.
		rounds := int(handshakeWait / work)
		var all []<-chan error
		for range 2 * rounds * turns {
			all = append(all, visit(t, d, hello+"!"))
		}
		began = time.Now()
		served, gone := 0, 0
		for _, ended := range all {
			switch err := <-ended; {
			case err == nil:
				served++
			case errors.Is(err, errCrowded):
				gone++
			default:
				t.Fatal(err)
			}
		}
		if took := time.Since(began); served < rounds*turns || served > (rounds+1)*turns || took > handshakeWait+work {
			t.Errorf("%d served and %d sent away in %s; %d at a time take %s", served, gone, took, turns, work)
		}

		seen := map[string]int{}
		for len(met) > 0 {
			seen[<-met]++
		}
		// Who says nothing is not kept for ever: 6 and 1 for each turn, and the one without TLS.
		if seen["crowded"] != gone || seen["full"] < served || seen["failed"] != 7*turns+1 {
			t.Errorf("counted %v", seen)
		}

		ready = false
		began = time.Now()
		if err := <-visit(t, d, hello); !errors.Is(err, errIdle) || time.Since(began) > 0 {
			t.Errorf("without a leader, after %s: %v", time.Since(began), err)
		}
		ready = true
		for range 2 * turns {
			visit(t, d, hello)
		}
		synctest.Wait()
		last := visit(t, d, hello+"!")
		synctest.Wait()
		close(stop)
		if err := <-last; !errors.Is(err, errClosing) {
			t.Errorf("while it goes down: %v", err)
		}
		time.Sleep(shakeWait + 2*work) // those at work end
	})
}

func TestPeersWaitForTheFirstLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		ready := false
		d := newDoor(slow{}, func() bool { return ready }, stop, func(string) {})
		early := visit(t, d, hello+"!")
		time.Sleep(3 * time.Second)
		ready = true
		began := time.Now()
		if err := <-early; err != nil || time.Since(began) > lookAgain+work {
			t.Errorf("%s after there was a leader: %v", time.Since(began), err)
		}
		ready = false
		began = time.Now()
		if err := <-visit(t, d, hello); !errors.Is(err, errIdle) || time.Since(began) > startWait {
			t.Errorf("without a leader, after %s: %v", time.Since(began), err)
		}
		d = newDoor(slow{}, func() bool { return false }, stop, func(string) {})
		last := visit(t, d, hello)
		synctest.Wait()
		close(stop)
		if err := <-last; !errors.Is(err, errClosing) {
			t.Errorf("while it goes down: %v", err)
		}
	})
}
