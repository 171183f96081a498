// LoRA in Swift, judged by recorded cases: README.md says how to run this, and how to go on.

import Foundation

/// The answer to start.
struct About: Encodable {
    let name = "mine", version = "0.1", language = "Swift"
    let dtypes = ["float64"]
    let methods: [String]
    let readings: [String: [String: String]] = [:]
}

/// A line read. What is not known of it is passed over.
struct Question: Decodable {
    let what: String
    let format: Double?
    let id, folder, out, trace, dtype: String?

    enum CodingKeys: String, CodingKey {
        case what = "do"
        case format, id, folder, out, trace, dtype
    }
}

/// What is nil is left out.
struct Answer: Encodable {
    let id: String?
    var status = "done"
    var reason, url: String?
}

/// What case.json says, but for the settings.
struct Told: Decodable {
    let method, place, ask: String
}

/// What a case asks for: a branch for every ask.
func solve(_ method: Method, _ ask: String, _ given: Given) throws -> Tensors {
    switch ask {
    case "forward":
        guard let y = try method.forward(given)["6.y"] else { throw No.failed("forward gives no 6.y") }
        return ["y": y]
    case "vjp":
        return try method.vjp(given)
    case "merge":
        return try method.merged(given)
    case "delta":
        guard let merged = try method.merged(given)["W"] else { throw No.failed("merged gives no W") }
        return ["delta": merged.with(try given.tensor("W")) { $0 - $1 }]
    default:
        throw No.unsupported("\(ask) is not there")
    }
}

/// The intermediates of the outputs, for `minipeft verify bisect`.
func traced(_ method: Method, _ given: Given) throws -> Tensors {
    var steps = try method.forward(given)
    steps["5.merged"] = try method.merged(given)["W"]
    return steps
}

func answerCase(_ asked: Question) throws {
    guard (asked.dtype ?? "float64") == "float64" else { throw No.unsupported("only float64 is there") }
    guard let folder = asked.folder, let out = asked.out else { throw No.failed("expected folder and out") }
    let text = try Data(contentsOf: URL(fileURLWithPath: folder + "/case.json"))
    let told = try JSONDecoder().decode(Told.self, from: text)
    guard let method = methods[told.method] else { throw No.unsupported("\(told.method) is not there") }
    guard told.place == "linear" else { throw No.unsupported("the place \(told.place) is not there") }
    let given = Given(text: text, tensors: try readTensors(folder + "/in.safetensors"))
    try writeTensors(out, try solve(method, told.ask, given))
    if let trace = asked.trace {
        try writeTensors(trace, try traced(method, given))
    }
}

func say<T: Encodable>(_ answer: T) throws {
    var line = try JSONEncoder().encode(answer)
    line.append(10) // the end of the line
    FileHandle.standardOutput.write(line)
}

func answer(_ line: String) throws {
    var answer = Answer(id: nil)
    do {
        let asked = try JSONDecoder().decode(Question.self, from: Data(line.utf8))
        answer = Answer(id: asked.id)
        switch asked.what {
        case "stop":
            exit(0)
        case "start" where asked.format == 1:
            return try say(About(methods: methods.keys.sorted()))
        case "start":
            FileHandle.standardError.write(Data("expected format 1\n".utf8))
            exit(1)
        case "case":
            try answerCase(asked)
        default:
            throw No.failed("expected start, case or stop, found \(asked.what)")
        }
    } catch No.unsupported(let why) {
        answer.status = "unsupported"
        answer.reason = why
        answer.url = ""
    } catch No.failed(let why) {
        answer.status = "error"
        answer.reason = why
    } catch {
        answer.status = "error"
        answer.reason = "\(error)"
    }
    try say(answer)
}

while let line = readLine() {
    try answer(line)
}
