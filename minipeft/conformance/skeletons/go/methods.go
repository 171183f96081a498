package main

import (
	"fmt"
	"math"
	"sort"
)

// Given is what a method computes with: its settings, and tensors by the letters of the equations.
type Given struct {
	Config  map[string]any
	Tensors Tensors
}

// Method is a method on a linear; results that it has not are an error Unsupported.
type Method interface {
	Forward(Given) (Tensors, error) // y, named 6.y, and on the way there what a trace holds
	VJP(Given) (Tensors, error)     // the gradients of Σ g·y by x and every trained array
	Merged(Given) (Tensors, error)  // W and b
}

// A method more is an entry more.
var methods = map[string]Method{"lora": lora{}}

func names() []string {
	out := []string{}
	for name := range methods {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// lora is y = x Wᵀ + b + s (x Aᵀ) Bᵀ + s c.
type lora struct{}

// arrays are LoRA's tensors, their shapes compared; c and x may be missing. kept is 1 − p where there is a dropout mask.
type arrays struct {
	x, W, b, A, B, c, keep Tensor
	s, kept                float64
}

func (lora) arrays(given Given, withX bool) (arrays, error) {
	t := given.Tensors
	a := arrays{x: t["x"], W: t["W"], b: t["b"], A: t["A"], B: t["B"], c: t["c"], keep: t["keep"]}
	r, _ := given.Config["r"].(float64)
	alpha, known := given.Config["alpha"].(float64)
	rslora, said := given.Config["rslora"].(bool)
	dropout, told := given.Config["dropout"].(float64)
	if r < 1 || r != math.Trunc(r) || !known || !said || (a.keep.Shape != nil && !told) {
		return a, fmt.Errorf("the settings are not LoRA's: %.200v", given.Config)
	}
	if a.s, a.kept = alpha/r, 1-dropout; rslora {
		a.s = alpha / math.Sqrt(r)
	}
	rows, out, in := a.x.rows(), a.W.rows(), a.W.columns()
	for _, each := range []struct {
		name          string
		rows, columns int
		needed        bool
	}{
		{"W", out, in, true}, {"b", 1, out, true}, {"A", int(r), in, true}, {"B", out, int(r), true}, {"c", 1, out, false},
		{"x", rows, in, withX}, {"keep", rows, in, false},
	} {
		found, there := t[each.name]
		if each.needed && !there {
			return a, fmt.Errorf("the tensor %s is missing", each.name)
		}
		if there && (len(found.Data) == 0 || found.rows() != each.rows || found.columns() != each.columns) {
			return a, fmt.Errorf("%s has the shape %v, which does not fit", each.name, found.Shape)
		}
	}
	return a, nil
}

// dropped is x as A sees it, and a gradient on its way back to x.
func (a arrays) dropped(x Tensor) Tensor {
	if a.keep.Shape == nil {
		return x
	}
	return x.with(a.keep, func(x, k float64) float64 { return x * k / a.kept })
}

func (l lora) Forward(given Given) (Tensors, error) {
	a, err := l.arrays(given, true)
	if err != nil {
		return nil, err
	}
	base := a.x.times(a.W.transposed()).plus(a.b)
	h := a.dropped(a.x).times(a.A.transposed())
	low := h.times(a.B.transposed())
	change := low
	if a.c.Shape != nil {
		change = low.plus(a.c)
	}
	return Tensors{"0.base": base, "1.h": h, "2.low": low, "6.y": base.plus(change.scaled(a.s))}, nil
}

func (l lora) VJP(given Given) (Tensors, error) {
	a, err := l.arrays(given, true)
	if err != nil {
		return nil, err
	}
	g := given.Tensors["g.y"]
	if g.rows() != a.x.rows() || g.columns() != a.W.rows() {
		return nil, fmt.Errorf("g.y has the shape %v, which does not fit", g.Shape)
	}
	seen := a.dropped(a.x)
	gLow := g.times(a.B).scaled(a.s) // by x Aᵀ
	found := Tensors{
		"x": g.times(a.W).plus(a.dropped(gLow.times(a.A))),
		"A": gLow.transposed().times(seen),
		"B": g.transposed().times(seen.times(a.A.transposed())).scaled(a.s),
	}
	if a.c.Shape != nil {
		found["c"] = g.sums().scaled(a.s)
	}
	return found, nil
}

func (l lora) Merged(given Given) (Tensors, error) {
	a, err := l.arrays(given, false)
	if err != nil {
		return nil, err
	}
	b := a.b
	if a.c.Shape != nil {
		b = b.plus(a.c.scaled(a.s))
	}
	return Tensors{"W": a.W.plus(a.B.times(a.A).scaled(a.s)), "b": b}, nil
}
