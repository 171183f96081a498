// LoRA in Go, judged by recorded cases: README.md says how to run this, and how to go on.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// about is the answer to start.
var about = map[string]any{
	"name": "mine", "version": "0.1", "language": "Go", "dtypes": []string{"float64"}, "methods": names(), "readings": map[string]any{},
}

// Unsupported is why something is not there.
type Unsupported string

func (why Unsupported) Error() string { return string(why) }

// question is a line read. What is not known of it is passed over.
type question struct {
	Do     string
	Format float64
	ID     *string
	Folder string
	Out    string
	Trace  string
	Dtype  string
}

// solve gives what a case asks for: a branch for every ask.
func solve(method Method, ask string, given Given) (Tensors, error) {
	switch ask {
	case "forward":
		steps, err := method.Forward(given)
		return Tensors{"y": steps["6.y"]}, err
	case "vjp":
		return method.VJP(given)
	case "merge":
		return method.Merged(given)
	case "delta":
		merged, err := method.Merged(given)
		if err != nil {
			return nil, err
		}
		delta := merged["W"]
		for i, w := range given.Tensors["W"].Data {
			delta.Data[i] -= w
		}
		return Tensors{"delta": delta}, nil
	}
	return nil, Unsupported(ask + " is not there")
}

// traced gives the intermediates of the outputs, for `minipeft verify bisect`.
func traced(method Method, given Given) (Tensors, error) {
	steps, err := method.Forward(given)
	if err != nil {
		return nil, err
	}
	merged, err := method.Merged(given)
	if err != nil {
		return nil, err
	}
	steps["5.merged"] = merged["W"]
	return steps, nil
}

func answerCase(asked question) (err error) {
	defer func() { // a panic costs its case
		if why := recover(); why != nil {
			err = fmt.Errorf("panic: %v", why)
		}
	}()
	if asked.Dtype != "" && asked.Dtype != "float64" {
		return Unsupported("only float64 is there")
	}
	text, err := os.ReadFile(filepath.Join(asked.Folder, "case.json"))
	if err != nil {
		return err
	}
	var told struct {
		Method, Place, Ask string
		Config             map[string]any
	}
	if err := json.Unmarshal(text, &told); err != nil {
		return err
	}
	method, there := methods[told.Method]
	switch {
	case !there:
		return Unsupported(told.Method + " is not there")
	case told.Place != "linear":
		return Unsupported("the place " + told.Place + " is not there")
	}
	tensors, err := readTensors(filepath.Join(asked.Folder, "in.safetensors"))
	if err != nil {
		return err
	}
	given := Given{told.Config, tensors}
	results, err := solve(method, told.Ask, given)
	if err != nil {
		return err
	}
	if err := writeTensors(asked.Out, results); err != nil || asked.Trace == "" {
		return err
	}
	steps, err := traced(method, given)
	if err != nil {
		return err
	}
	return writeTensors(asked.Trace, steps)
}

func answer(line []byte) map[string]any {
	var asked question
	err := json.Unmarshal(line, &asked)
	switch {
	case err != nil:
	case asked.Do == "stop":
		os.Exit(0)
	case asked.Do == "start" && asked.Format == 1:
		return about
	case asked.Do == "start":
		fmt.Fprintln(os.Stderr, "expected format 1")
		os.Exit(1)
	case asked.Do == "case":
		err = answerCase(asked)
	default:
		err = fmt.Errorf("expected start, case or stop, found %.40q", asked.Do)
	}
	out := map[string]any{"status": "done"}
	if why := Unsupported(""); errors.As(err, &why) {
		out = map[string]any{"status": "unsupported", "reason": string(why), "url": ""}
	} else if err != nil {
		out = map[string]any{"status": "error", "reason": err.Error()}
	}
	if asked.ID != nil {
		out["id"] = *asked.ID
	}
	return out
}

func main() {
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) == 0 && err != nil {
			return
		}
		said, _ := json.Marshal(answer(line))
		if _, err := fmt.Printf("%s\n", said); err != nil {
			return // nobody listens any more
		}
	}
}
