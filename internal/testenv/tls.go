package testenv

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"
)

// authority is a throwaway certificate authority. Its key never leaves the
// test bed's own directory.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// validity of everything an authority issues; the past half allows for tests
// that turn back a clock.
const validity = 24 * time.Hour

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-validity),
		NotAfter:              time.Now().Add(2 * validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key}, nil
}

// loadAuthority reads what certPEM and keyPEM wrote.
func loadAuthority(certPEM, keyPEM []byte) (*authority, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the authority's key cannot sign")
	}
	return &authority{cert: pair.Leaf, key: key}, nil
}

func (a *authority) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) keyPEM() ([]byte, error) { return encodeKey(a.key) }

// issueServer returns a serving certificate for the loopback interface and
// the extra DNS names.
func (a *authority) issueServer(names ...string) (certPEM, keyPEM []byte, err error) {
	return a.issueServerUntil(time.Now().Add(validity), names...)
}

// issueServerUntil is issueServer for a certificate that ends at a given time,
// which may have passed.
func (a *authority) issueServerUntil(until time.Time, names ...string) (certPEM, keyPEM []byte, err error) {
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"},
		DNSNames:    append([]string{"localhost"}, names...),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotAfter:    until,
	})
}

// issueClient returns a client certificate as Kubernetes reads it: the common
// name is the user, the organizations are the groups.
func (a *authority) issueClient(user string, groups ...string) (certPEM, keyPEM []byte, err error) {
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (a *authority) issue(template *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, nil, err
	}
	template.NotBefore = time.Now().Add(-validity / 2)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(validity)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

// webServer is an HTTP server on a free loopback port, with TLS under its own
// authority where asked.
type webServer struct {
	server *http.Server
	host   string // "127.0.0.1:port"
	scheme string
	ca     []byte // PEM, nil without TLS
}

func serve(handler http.Handler, withTLS bool) (*webServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &webServer{
		server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second},
		host:   listener.Addr().String(),
		scheme: "http",
	}
	if withTLS {
		ca, err := newAuthority("holdfast test bed")
		if err != nil {
			_ = listener.Close()
			return nil, err
		}
		certPEM, keyPEM, err := ca.issueServer()
		if err != nil {
			_ = listener.Close()
			return nil, err
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			_ = listener.Close()
			return nil, err
		}
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
		w.scheme, w.ca = "https", ca.certPEM()
	}
	// Failed handshakes are what many tests are about; they are not worth a log line.
	w.server.ErrorLog = discardLogger()
	go func() { _ = w.server.Serve(listener) }()
	return w, nil
}

func (w *webServer) url() string { return w.scheme + "://" + w.host }

// close ends open connections too: a test that hangs on one must not hold up
// its own cleanup.
func (w *webServer) close() error { return w.server.Close() }

// transportFor returns a transport that trusts ca, or the system's roots where
// ca is empty.
func transportFor(ca []byte) (*http.Transport, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second}
	if len(ca) == 0 {
		return transport, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("no certificate in the authority's PEM")
	}
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return transport, nil
}
