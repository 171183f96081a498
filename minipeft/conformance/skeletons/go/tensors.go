package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"sort"
)

// Tensor holds numbers row by row. As a matrix, all axes but the last are rows.
type Tensor struct {
	Shape []int
	Data  []float64
}

// Tensors are tensors by name.
type Tensors map[string]Tensor

var widths = map[string]int{"F64": 8, "F32": 4, "I64": 8, "I32": 4, "U8": 1}

func number(dtype string, b []byte) float64 {
	switch dtype {
	case "F64":
		return math.Float64frombits(binary.LittleEndian.Uint64(b))
	case "F32":
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	case "I64":
		return float64(int64(binary.LittleEndian.Uint64(b)))
	case "I32":
		return float64(int32(binary.LittleEndian.Uint32(b)))
	}
	return float64(b[0])
}

// readTensors reads a safetensors file: docs/format.md of minipeft, section 1.
func readTensors(path string) (Tensors, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(file) < 8 || binary.LittleEndian.Uint64(file) > uint64(len(file)-8) {
		return nil, fmt.Errorf("%s: the header is longer than the file", path)
	}
	data := file[8+binary.LittleEndian.Uint64(file):]
	var header map[string]json.RawMessage
	if err := json.Unmarshal(file[8:len(file)-len(data)], &header); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	delete(header, "__metadata__")
	found := Tensors{}
	for name, entry := range header {
		var about struct {
			Dtype   string   `json:"dtype"`
			Shape   []uint32 `json:"shape"`
			Offsets []int    `json:"data_offsets"`
		}
		if err := json.Unmarshal(entry, &about); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		width, size, shape := widths[about.Dtype], 1, []int{}
		for _, n := range about.Shape {
			if n != 0 && size > len(file)/int(n) {
				return nil, fmt.Errorf("%s is larger than the file", name)
			}
			size, shape = size*int(n), append(shape, int(n))
		}
		at := about.Offsets
		if width == 0 || len(at) != 2 || at[0] < 0 || at[0] > at[1] || at[1] > len(data) || at[1]-at[0] != size*width {
			return nil, fmt.Errorf("%s: the data of dtype %.20q do not have its shape", name, about.Dtype)
		}
		numbers := make([]float64, size)
		for i := range numbers {
			numbers[i] = number(about.Dtype, data[at[0]+i*width:])
		}
		found[name] = Tensor{shape, numbers}
	}
	return found, nil
}

// writeTensors writes tensors in float64.
func writeTensors(path string, tensors Tensors) error {
	header, data, names := map[string]any{}, new(bytes.Buffer), []string{}
	for name := range tensors {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		begin := data.Len()
		binary.Write(data, binary.LittleEndian, tensors[name].Data)
		header[name] = map[string]any{"dtype": "F64", "shape": tensors[name].Shape, "data_offsets": []int{begin, data.Len()}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		return err
	}
	text = append(text, bytes.Repeat([]byte(" "), (8-len(text)%8)%8)...)
	length := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	return os.WriteFile(path, bytes.Join([][]byte{length, text, data.Bytes()}, nil), 0o644)
}

func (t Tensor) columns() int {
	if len(t.Shape) == 0 {
		return 1
	}
	return t.Shape[len(t.Shape)-1]
}

func (t Tensor) rows() int { return len(t.Data) / max(1, t.columns()) }

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}

// wide is a tensor of zeros with the axes of t, but the last of them of n.
func (t Tensor) wide(n int) Tensor {
	shape := append([]int{}, t.Shape...)
	shape[len(shape)-1] = n
	return Tensor{shape, make([]float64, t.rows()*n)}
}

// times is the product with a matrix, whose shapes were compared when the tensors were read.
func (t Tensor) times(m Tensor) Tensor {
	out, inner := t.wide(m.columns()), t.columns()
	if inner != m.rows() {
		panic("matrices that do not multiply")
	}
	for i := range out.Data {
		row, column := i/m.columns(), i%m.columns()
		for k := 0; k < inner; k++ {
			out.Data[i] += t.Data[row*inner+k] * m.Data[k*m.columns()+column]
		}
	}
	return out
}

func (t Tensor) transposed() Tensor {
	rows, columns := t.rows(), t.columns()
	out := Tensor{[]int{columns, rows}, make([]float64, len(t.Data))}
	for i := range t.Data {
		out.Data[i%columns*rows+i/columns] = t.Data[i]
	}
	return out
}

// with is f element by element; of a single row it is beside every row.
func (t Tensor) with(other Tensor, f func(a, b float64) float64) Tensor {
	out := t.wide(t.columns())
	for i, a := range t.Data {
		out.Data[i] = f(a, other.Data[i%len(other.Data)])
	}
	return out
}

func (t Tensor) plus(other Tensor) Tensor {
	return t.with(other, func(a, b float64) float64 { return a + b })
}

func (t Tensor) scaled(s float64) Tensor {
	return t.with(t, func(a, _ float64) float64 { return s * a })
}

// sums are the sums of the columns.
func (t Tensor) sums() Tensor {
	out := Tensor{[]int{t.columns()}, make([]float64, t.columns())}
	for i, a := range t.Data {
		out.Data[i%t.columns()] += a
	}
	return out
}
