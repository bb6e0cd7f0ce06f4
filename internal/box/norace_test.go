//go:build !race

package box_test

const race = false
