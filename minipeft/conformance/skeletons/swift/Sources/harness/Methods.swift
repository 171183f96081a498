import Foundation

/// Why there is no result.
enum No: Error {
    case unsupported(String)
    case failed(String)
}

/// What a method is given: its settings, in the text of case.json, and tensors by the letters of the equations.
struct Given {
    let text: Data
    let tensors: Tensors

    private struct Settings<Config: Decodable>: Decodable {
        let config: Config
    }

    func settings<Config: Decodable>(_: Config.Type) throws -> Config {
        try JSONDecoder().decode(Settings<Config>.self, from: text).config
    }

    /// A tensor that must be there; all axes but the last are rows.
    func tensor(_ name: String, rows: Int? = nil, columns: Int? = nil) throws -> Tensor {
        guard let found = tensors[name] else { throw No.failed("the tensor \(name) is missing") }
        guard !found.data.isEmpty, (rows ?? found.rows) == found.rows, (columns ?? found.columns) == found.columns else {
            throw No.failed("\(name) has the shape \(found.shape), which does not fit")
        }
        return found
    }

    /// The same of a tensor that need not be there.
    func perhaps(_ name: String, rows: Int, columns: Int) throws -> Tensor? {
        try tensors[name] == nil ? nil : tensor(name, rows: rows, columns: columns)
    }
}

/// A method on a linear. For what it has not it throws `No.unsupported`.
protocol Method {
    /// y, named 6.y, and on the way there what a trace holds.
    func forward(_ given: Given) throws -> Tensors
    /// The gradients of Σ g·y by x and every trained array.
    func vjp(_ given: Given) throws -> Tensors
    /// W and b.
    func merged(_ given: Given) throws -> Tensors
}

/// A method more is an entry more.
let methods: [String: Method] = ["lora": LoRA()]

/// y = x Wᵀ + b + s (x Aᵀ) Bᵀ + s c.
struct LoRA: Method {
    struct Config: Decodable {
        let r: Int
        let alpha, dropout: Double
        let rslora: Bool
    }

    struct Arrays {
        let W, b, A, B: Tensor
        let c: Tensor?
        let s, kept: Double // kept: 1 − p, p being the share that is dropped
    }

    func arrays(_ given: Given) throws -> Arrays {
        let config = try given.settings(Config.self)
        guard config.r > 0 else { throw No.failed("r is \(config.r)") }
        let W = try given.tensor("W")
        return Arrays(
            W: W,
            b: try given.tensor("b", rows: 1, columns: W.rows),
            A: try given.tensor("A", rows: config.r, columns: W.columns),
            B: try given.tensor("B", rows: W.rows, columns: config.r),
            c: try given.perhaps("c", rows: 1, columns: W.rows),
            s: config.alpha / (config.rslora ? Double(config.r).squareRoot() : Double(config.r)),
            kept: 1 - config.dropout
        )
    }

    /// x as A sees it, and a gradient on its way back to x: with the dropout mask, if there is one.
    func dropped(_ given: Given, _ x: Tensor, _ kept: Double) throws -> Tensor {
        guard let keep = try given.perhaps("keep", rows: x.rows, columns: x.columns) else { return x }
        return x.with(keep) { $0 * $1 / kept }
    }

    func forward(_ given: Given) throws -> Tensors {
        let a = try arrays(given)
        let x = try given.tensor("x", columns: a.W.columns)
        let base = x.times(a.W.transposed).plus(a.b)
        let h = try dropped(given, x, a.kept).times(a.A.transposed)
        let low = h.times(a.B.transposed)
        let change = a.c.map { low.plus($0) } ?? low
        return ["0.base": base, "1.h": h, "2.low": low, "6.y": base.plus(change.scaled(a.s))]
    }

    func vjp(_ given: Given) throws -> Tensors {
        let a = try arrays(given)
        let x = try given.tensor("x", columns: a.W.columns)
        let g = try given.tensor("g.y", rows: x.rows, columns: a.W.rows)
        let seen = try dropped(given, x, a.kept)
        let gLow = g.times(a.B).scaled(a.s) // by x Aᵀ
        var found: Tensors = [:]
        found["x"] = g.times(a.W).plus(try dropped(given, gLow.times(a.A), a.kept))
        found["A"] = gLow.transposed.times(seen)
        found["B"] = g.transposed.times(seen.times(a.A.transposed)).scaled(a.s)
        if a.c != nil {
            found["c"] = g.sums.scaled(a.s)
        }
        return found
    }

    func merged(_ given: Given) throws -> Tensors {
        let a = try arrays(given)
        let b = a.c.map { a.b.plus($0.scaled(a.s)) } ?? a.b
        return ["W": a.W.plus(a.B.times(a.A).scaled(a.s)), "b": b]
    }
}
