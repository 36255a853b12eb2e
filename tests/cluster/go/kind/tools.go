//go:build tools

// Package tools names the command that the local cluster needs, so that go.mod pins it.
package tools

import _ "sigs.k8s.io/kind"
