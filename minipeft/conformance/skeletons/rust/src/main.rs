//! LoRA in Rust, judged by recorded cases: README.md says how to run this, and how to go on.

mod json;
mod matrix;
mod methods;
mod safetensors;

use json::{quoted, Json};
use methods::{methods, Given, Method, No};
use safetensors::{Tensor, Tensors};
use std::io::{BufRead, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

/// A function for every ask.
fn solve(method: &dyn Method, ask: &str, given: &Given) -> Result<Tensors, No> {
    let named = |name: &str, tensor| (name.to_string(), tensor);
    Ok(match ask {
        "forward" => {
            let y = method.forward(given)?.remove("6.y");
            Tensors::from([named(
                "y",
                y.ok_or_else(|| "forward gives no 6.y".to_string())?,
            )])
        }
        "vjp" => method.vjp(given)?,
        "merge" => {
            let (w, b) = method.merged(given)?;
            Tensors::from([named("W", w), named("b", b)])
        }
        "delta" => {
            let (Tensor { shape, mut data }, _) = method.merged(given)?;
            data.iter_mut()
                .zip(&given.tensor("W")?.data)
                .for_each(|(merged, w)| *merged -= w);
            Tensors::from([named("delta", Tensor { shape, data })])
        }
        _ => return Err(No::Unsupported(format!("{ask} is not there"))),
    })
}

/// The intermediates of the outputs, for `minipeft verify bisect`.
fn traced(method: &dyn Method, given: &Given) -> Result<Tensors, No> {
    let mut steps = method.forward(given)?;
    steps.insert("5.merged".to_string(), method.merged(given)?.0);
    Ok(steps)
}

fn case(asked: &Json) -> Result<(), No> {
    let folder = Path::new(asked.text("folder")?);
    let text = std::fs::read_to_string(folder.join("case.json"))
        .map_err(|why| format!("case.json: {why}"))?;
    let about = Json::parse(&text)?;
    let (name, place) = (about.text("method")?, about.text("place")?);
    let every = methods();
    let found = every.iter().find(|method| method.name() == name);
    let method = found.ok_or_else(|| No::Unsupported(format!("{name} is not there")))?;
    if place != "linear" {
        return Err(No::Unsupported(format!("the place {place} is not there")));
    }
    if asked
        .get("dtype")
        .is_some_and(|dtype| *dtype != Json::Text("float64".into()))
    {
        return Err(No::Unsupported("only float64 is there".into()));
    }
    let tensors = safetensors::read(&folder.join("in.safetensors"))?;
    let given = Given {
        config: about.need("config")?.clone(),
        tensors,
    };
    let results = solve(method.as_ref(), about.text("ask")?, &given)?;
    safetensors::write(Path::new(asked.text("out")?), &results)?;
    if let Some(Json::Text(path)) = asked.get("trace") {
        safetensors::write(Path::new(path), &traced(method.as_ref(), &given)?)?;
    }
    Ok(())
}

fn about() -> String {
    let names: Vec<_> = methods()
        .iter()
        .map(|method| quoted(method.name()))
        .collect();
    format!(
        r#"{{"name": "mine", "version": "0.1", "language": "Rust", "dtypes": ["float64"], "methods": [{}], "readings": {{}}}}"#,
        names.join(", ")
    )
}

/// What a panic said.
fn panicked(why: &(dyn std::any::Any + Send)) -> String {
    let said = why.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| why.downcast_ref::<&str>().copied());
    format!("panic: {}", said.unwrap_or("it said nothing"))
}

/// The answer to a question; `id` is how one to a case begins.
fn answer(asked: &Json, id: &str) -> Result<String, No> {
    match asked.text("do")? {
        "stop" => std::process::exit(0),
        "start" if asked.get("format") == Some(&Json::Number(1.0)) => Ok(about()),
        "start" => {
            eprintln!("expected format 1");
            std::process::exit(1)
        }
        "case" => catch_unwind(AssertUnwindSafe(|| case(asked))) // a panic costs its case
            .unwrap_or_else(|why| Err(panicked(why.as_ref()).into()))
            .map(|()| format!(r#"{{{id}"status": "done"}}"#)),
        other => Err(format!("expected start, case or stop, found {other}").into()),
    }
}

fn main() {
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let asked = std::str::from_utf8(&line)
            .map_err(|_| "the line is no UTF-8".to_string())
            .and_then(Json::parse);
        let id = match asked.as_ref().map(|asked| asked.get("id")) {
            Ok(Some(Json::Text(id))) => format!(r#""id": {}, "#, quoted(id)),
            _ => String::new(),
        };
        let said = asked
            .map_err(No::from)
            .and_then(|asked| answer(&asked, &id));
        let said = said.unwrap_or_else(|no| {
            let (status, why) = match no {
                No::Unsupported(why) => ("unsupported", why),
                No::Error(why) => ("error", why),
            };
            format!(
                r#"{{{id}"status": "{status}", "reason": {}, "url": ""}}"#,
                quoted(&why)
            )
        });
        if writeln!(output, "{said}")
            .and_then(|()| output.flush())
            .is_err()
        {
            return; // nobody listens any more
        }
        line.clear();
    }
}
