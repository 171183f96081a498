//! Methods: a method more is a struct with the trait `Method`, and a line in `methods`.

use crate::json::Json;
use crate::matrix::Matrix;
use crate::safetensors::{Tensor, Tensors};

/// Why there is no result.
pub enum No {
    Unsupported(String),
    Error(String),
}

impl<T: Into<String>> From<T> for No {
    fn from(why: T) -> No {
        No::Error(why.into())
    }
}

/// What a method is given: its settings, and tensors by the letters of the equations.
pub struct Given {
    pub config: Json,
    pub tensors: Tensors,
}

impl Given {
    pub fn tensor(&self, name: &str) -> Result<&Tensor, No> {
        self.tensors
            .get(name)
            .ok_or_else(|| format!("there is no tensor {name}").into())
    }

    /// A tensor as a matrix of a shape, all axes but the last being rows.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix, No> {
        let found = Matrix::of(self.tensor(name)?);
        if (found.rows, found.columns) != (rows, columns) {
            let (r, c) = (found.rows, found.columns);
            return Err(format!(
                "{name}: expected {rows} rows and {columns} columns, found {r} and {c}"
            )
            .into());
        }
        Ok(found)
    }

    /// The same of a tensor that need not be there.
    pub fn perhaps(&self, name: &str, rows: usize, columns: usize) -> Result<Option<Matrix>, No> {
        self.tensors
            .get(name)
            .map(|_| self.matrix(name, rows, columns))
            .transpose()
    }
}

/// A method on a linear. What it has not is answered `unsupported`.
pub trait Method {
    fn name(&self) -> &'static str;

    /// y, named `6.y`, and on the way there what a trace holds.
    fn forward(&self, _: &Given) -> Result<Tensors, No> {
        Err(No::Unsupported(format!(
            "{} has no forward here",
            self.name()
        )))
    }

    /// The gradients of Σ g·y by x and every trained array, by their names.
    fn vjp(&self, _: &Given) -> Result<Tensors, No> {
        Err(No::Unsupported(format!("{} has no vjp here", self.name())))
    }

    /// The merged W and b.
    fn merged(&self, _: &Given) -> Result<(Tensor, Tensor), No> {
        Err(No::Unsupported(format!(
            "{} does not merge here",
            self.name()
        )))
    }
}

pub fn methods() -> Vec<Box<dyn Method>> {
    vec![Box::new(Lora)]
}

/// y = x Wᵀ + b + s (x Aᵀ) Bᵀ + s c.
struct Lora;

/// LoRA's matrices; b and c are rows.
struct Arrays {
    w: Matrix,
    b: Matrix,
    low: Matrix,
    high: Matrix,
    c: Option<Matrix>,
    s: f64,
}

impl Lora {
    fn arrays(&self, given: &Given) -> Result<Arrays, No> {
        let w = Matrix::of(given.tensor("W")?);
        let low = Matrix::of(given.tensor("A")?);
        let r = given.config.number("r")?;
        if low.rows == 0 || low.rows as f64 != r || w.data.is_empty() {
            return Err(format!("A has {} rows, r is {r}", low.rows).into());
        }
        let rslora = given.config.truth("rslora")?;
        let divisor = if rslora { r.sqrt() } else { r };
        Ok(Arrays {
            b: given.matrix("b", 1, w.rows)?,
            low: given.matrix("A", low.rows, w.columns)?,
            high: given.matrix("B", w.rows, low.rows)?,
            c: given.perhaps("c", 1, w.rows)?,
            s: given.config.number("alpha")? / divisor,
            w,
        })
    }
}

/// x as A sees it, and a gradient on its way back to x: a ∘ keep / (1 − p), if there is a dropout mask.
fn dropped(given: &Given, a: &Matrix) -> Result<Matrix, No> {
    let Some(keep) = given.perhaps("keep", a.rows, a.columns)? else {
        return Ok(a.clone());
    };
    let kept = 1.0 - given.config.number("dropout")?;
    Ok(a.with(&keep, |a, k| a * k / kept))
}

impl Method for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn forward(&self, given: &Given) -> Result<Tensors, No> {
        let Arrays {
            w,
            b,
            low,
            high,
            c,
            s,
        } = self.arrays(given)?;
        let like = given.tensor("x")?;
        let x = given.matrix("x", Matrix::of(like).rows, w.columns)?;
        let base = x.times(&w.transposed()).shifted(&b);
        let h = dropped(given, &x)?.times(&low.transposed());
        let low = h.times(&high.transposed());
        let change = c.map_or(low.clone(), |c| low.shifted(&c));
        let y = base.plus(&change.scaled(s));
        let steps = [("0.base", base), ("1.h", h), ("2.low", low), ("6.y", y)];
        Ok(steps
            .map(|(name, m)| (name.to_string(), m.like(like)))
            .into())
    }

    fn vjp(&self, given: &Given) -> Result<Tensors, No> {
        let Arrays {
            w, low, high, c, s, ..
        } = self.arrays(given)?;
        let x = given.matrix("x", Matrix::of(given.tensor("x")?).rows, w.columns)?;
        let g = given.matrix("g.y", x.rows, w.rows)?;
        let seen = dropped(given, &x)?;
        let g_low = g.times(&high).scaled(s); // by x Aᵀ
        let mut found = vec![
            ("x", g.times(&w).plus(&dropped(given, &g_low.times(&low))?)),
            ("A", g_low.transposed().times(&seen)),
            (
                "B",
                g.transposed()
                    .times(&seen.times(&low.transposed()))
                    .scaled(s),
            ),
        ];
        found.extend(c.map(|_| ("c", g.sums().scaled(s))));
        found
            .into_iter()
            .map(|(name, m)| Ok((name.to_string(), m.like(given.tensor(name)?))))
            .collect()
    }

    fn merged(&self, given: &Given) -> Result<(Tensor, Tensor), No> {
        let Arrays {
            w,
            b,
            low,
            high,
            c,
            s,
        } = self.arrays(given)?;
        let b = c.map_or(b.clone(), |c| b.plus(&c.scaled(s)));
        let w = w.plus(&high.times(&low).scaled(s));
        Ok((w.like(given.tensor("W")?), b.like(given.tensor("b")?)))
    }
}
