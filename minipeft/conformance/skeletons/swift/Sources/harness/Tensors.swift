import Foundation

typealias Tensors = [String: Tensor]

/// Numbers row by row. As a matrix, all axes but the last are rows.
struct Tensor {
    let shape: [Int]
    let data: [Double]

    var columns: Int { shape.last ?? 1 }
    var rows: Int { columns == 0 ? 0 : data.count / columns }

    /// The product with a matrix, whose shapes were compared when the tensors were read.
    func times(_ other: Tensor) -> Tensor {
        precondition(columns == other.rows, "matrices that do not multiply")
        let (inner, wide) = (columns, other.columns)
        var out = [Double](repeating: 0, count: rows * wide)
        for i in 0..<rows {
            for j in 0..<wide {
                for k in 0..<inner {
                    out[i * wide + j] += data[i * inner + k] * other.data[k * wide + j]
                }
            }
        }
        return Tensor(shape: Array(shape.dropLast()) + [wide], data: out)
    }

    var transposed: Tensor {
        var out = [Double](repeating: 0, count: data.count)
        for i in 0..<data.count {
            out[i % columns * rows + i / columns] = data[i]
        }
        return Tensor(shape: [columns, rows], data: out)
    }

    /// f element by element; of a single row it is beside every row.
    func with(_ other: Tensor, _ f: (Double, Double) -> Double) -> Tensor {
        Tensor(shape: shape, data: data.indices.map { f(data[$0], other.data[$0 % other.data.count]) })
    }

    func plus(_ other: Tensor) -> Tensor { with(other) { $0 + $1 } }

    func scaled(_ s: Double) -> Tensor { Tensor(shape: shape, data: data.map { s * $0 }) }

    /// The sums of the columns.
    var sums: Tensor {
        var out = [Double](repeating: 0, count: columns)
        for i in 0..<data.count {
            out[i % columns] += data[i]
        }
        return Tensor(shape: [columns], data: out)
    }
}

// --- files of safetensors: docs/format.md of minipeft, section 1 ------------------------------------------------------

struct Entry: Codable {
    let dtype: String
    let shape: [Int]
    let data_offsets: [Int]
}

/// A value of the header; nil for one that is no tensor.
struct Item: Decodable {
    let entry: Entry?

    init(from decoder: Decoder) throws {
        entry = try? Entry(from: decoder)
    }
}

let widths = ["F64": 8, "F32": 4, "I64": 8, "I32": 4, "U8": 1]

/// A whole number from bytes, the last of them the highest.
func littleEndian(_ bytes: ArraySlice<UInt8>) -> UInt64 {
    var found: UInt64 = 0
    for byte in bytes.reversed() {
        found = found << 8 | UInt64(byte)
    }
    return found
}

func number(_ dtype: String, _ bits: UInt64) -> Double {
    switch dtype {
    case "F64": return Double(bitPattern: bits)
    case "F32": return Double(Float(bitPattern: UInt32(bits)))
    case "I64": return Double(Int64(bitPattern: bits))
    case "I32": return Double(Int32(bitPattern: UInt32(bits)))
    default: return Double(bits)
    }
}

/// The tensors of a file, by name.
func readTensors(_ path: String) throws -> Tensors {
    let file = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    guard file.count >= 8, littleEndian(file[0..<8]) <= UInt64(file.count - 8) else {
        throw No.failed("\(path): the header is longer than the file")
    }
    let begin = 8 + Int(littleEndian(file[0..<8]))
    let header = try JSONDecoder().decode([String: Item].self, from: Data(file[8..<begin]))
    var found: Tensors = [:]
    for (name, item) in header where name != "__metadata__" {
        guard let entry = item.entry, let width = widths[entry.dtype], entry.data_offsets.count == 2 else {
            throw No.failed("\(name) is no tensor of a dtype that is read here")
        }
        var size = 1
        for n in entry.shape {
            guard n >= 0, n == 0 || size <= file.count / n else { throw No.failed("\(name) is larger than the file") }
            size *= n
        }
        let (from, to) = (entry.data_offsets[0], entry.data_offsets[1])
        guard 0 <= from, from <= to, to <= file.count - begin, to - from == size * width else {
            throw No.failed("the data of \(name) do not have its shape")
        }
        let data: [Double] = (0..<size).map { i in
            let at = begin + from + i * width
            return number(entry.dtype, littleEndian(file[at..<at + width]))
        }
        found[name] = Tensor(shape: entry.shape, data: data)
    }
    return found
}

/// Write tensors in float64.
func writeTensors(_ path: String, _ tensors: Tensors) throws {
    var header: [String: Entry] = [:]
    var data: [UInt8] = []
    for (name, tensor) in tensors {
        let begin = data.count
        for number in tensor.data {
            withUnsafeBytes(of: number.bitPattern.littleEndian) { data.append(contentsOf: $0) }
        }
        header[name] = Entry(dtype: "F64", shape: tensor.shape, data_offsets: [begin, data.count])
    }
    var text = [UInt8](try JSONEncoder().encode(header))
    text += [UInt8](repeating: 32, count: (8 - text.count % 8) % 8)
    var file: [UInt8] = []
    withUnsafeBytes(of: UInt64(text.count).littleEndian) { file.append(contentsOf: $0) }
    try Data(file + text + data).write(to: URL(fileURLWithPath: path))
}
