//! Matrices, as far as methods need them.

use crate::safetensors::Tensor;

/// Numbers row by row.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub data: Vec<f64>,
}

impl Matrix {
    /// A tensor with all axes but the last as rows.
    pub fn of(tensor: &Tensor) -> Matrix {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let rows = tensor.data.len().checked_div(columns).unwrap_or(0);
        Matrix {
            rows,
            columns,
            data: tensor.data.clone(),
        }
    }

    /// As a tensor whose last axis is the columns and whose others are those of another tensor.
    pub fn like(self, other: &Tensor) -> Tensor {
        let mut shape = other.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = self.columns;
        }
        Tensor {
            shape,
            data: self.data,
        }
    }

    pub fn transposed(&self) -> Matrix {
        let data = (0..self.columns)
            .flat_map(|j| self.data.iter().skip(j).step_by(self.columns))
            .copied()
            .collect();
        Matrix {
            rows: self.columns,
            columns: self.rows,
            data,
        }
    }

    /// The product; both must fit, as the shapes were compared when the tensors were read.
    pub fn times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.columns, other.rows, "matrices that do not multiply");
        let mut data = vec![0.0; self.rows * other.columns];
        for i in 0..self.rows {
            for k in 0..self.columns {
                let a = self.data[i * self.columns + k];
                for j in 0..other.columns {
                    data[i * other.columns + j] += a * other.data[k * other.columns + j];
                }
            }
        }
        Matrix {
            rows: self.rows,
            columns: other.columns,
            data,
        }
    }

    pub fn scaled(&self, s: f64) -> Matrix {
        Matrix {
            data: self.data.iter().map(|a| s * a).collect(),
            ..*self
        }
    }

    /// f element by element, of two matrices of one shape.
    pub fn with(&self, other: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
        assert_eq!(
            (self.rows, self.columns),
            (other.rows, other.columns),
            "matrices of two shapes"
        );
        Matrix {
            data: self
                .data
                .iter()
                .zip(&other.data)
                .map(|(a, b)| f(*a, *b))
                .collect(),
            ..*self
        }
    }

    pub fn plus(&self, other: &Matrix) -> Matrix {
        self.with(other, |a, b| a + b)
    }

    /// A row added to every row.
    pub fn shifted(&self, row: &Matrix) -> Matrix {
        assert_eq!(
            (1, self.columns),
            (row.rows, row.columns),
            "a row that does not fit"
        );
        Matrix {
            data: self
                .data
                .iter()
                .zip(row.data.iter().cycle())
                .map(|(a, b)| a + b)
                .collect(),
            ..*self
        }
    }

    /// The sums of the columns, as a row.
    pub fn sums(&self) -> Matrix {
        Matrix {
            rows: 1,
            columns: self.rows,
            data: vec![1.0; self.rows],
        }
        .times(self)
    }
}
