//! Files of safetensors: docs/format.md of minipeft, section 1.

use crate::json::{quoted, Json};
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers row by row, and their shape.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a file, by name.
pub fn read(path: &Path) -> Result<Tensors, String> {
    let file = std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let (header, data) = split(&file).ok_or("the header is longer than the file")?;
    let header = std::str::from_utf8(header).map_err(|_| "the header is no UTF-8")?;
    let Json::Object(entries) = Json::parse(header)? else {
        return Err("the header is no JSON object".into());
    };
    let mut found = Tensors::new();
    for (name, entry) in entries
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
    {
        let tensor = tensor(&entry, data).map_err(|why| format!("{name}: {why}"))?;
        if found.insert(name.clone(), tensor).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(found)
}

/// The header and the data.
fn split(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.checked_add(8)?;
    Some((file.get(8..end)?, &file[end..]))
}

fn tensor(entry: &Json, data: &[u8]) -> Result<Tensor, String> {
    let shape = entry.wholes("shape")?;
    let (width, number): (usize, fn(&[u8]) -> f64) = match entry.text("dtype")? {
        "F64" => (8, |b| f64::from_le_bytes(b.try_into().unwrap())),
        "F32" => (4, |b| f32::from_le_bytes(b.try_into().unwrap()).into()),
        "I64" => (8, |b| i64::from_le_bytes(b.try_into().unwrap()) as f64),
        "I32" => (4, |b| i32::from_le_bytes(b.try_into().unwrap()).into()),
        "U8" => (1, |b| b[0].into()),
        other => return Err(format!("the dtype {other} is not read here")),
    };
    let [begin, end] = entry.wholes("data_offsets")?[..] else {
        return Err("there are not two offsets".into());
    };
    let size = shape
        .iter()
        .try_fold(width, |n: usize, d| n.checked_mul(*d));
    let bytes = data
        .get(begin..end)
        .filter(|bytes| Some(bytes.len()) == size)
        .ok_or("the data do not have its shape")?;
    Ok(Tensor {
        data: bytes.chunks_exact(width).map(number).collect(),
        shape,
    })
}

/// Write tensors in float64.
pub fn write(path: &Path, tensors: &Tensors) -> Result<(), String> {
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for (
        name,
        Tensor {
            shape,
            data: numbers,
        },
    ) in tensors
    {
        let begin = data.len();
        data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let end = data.len();
        header.push(format!(
            r#"{}: {{"dtype": "F64", "shape": {shape:?}, "data_offsets": [{begin}, {end}]}}"#,
            quoted(name)
        ));
    }
    let mut header = format!("{{{}}}", header.join(", "));
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let length = header.len() as u64;
    let file = [&length.to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(path, file).map_err(|why| format!("{}: {why}", path.display()))
}
