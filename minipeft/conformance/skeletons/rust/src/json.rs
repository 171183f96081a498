//! JSON, as much of it as the protocol, case.json and the headers of safetensors need.

const DEEPEST: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value that a text holds, and nothing after it.
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut reader = Reader {
            text,
            at: 0,
            depth: 0,
        };
        let value = reader.value()?;
        reader.space();
        if reader.at < text.len() {
            return Err(reader.expected("the end"));
        }
        Ok(value)
    }

    /// The value of a key, if there is one.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value of a key that must be there.
    pub fn need(&self, key: &str) -> Result<&Json, String> {
        self.get(key).ok_or_else(|| format!("there is no {key}"))
    }

    pub fn text(&self, key: &str) -> Result<&str, String> {
        match self.need(key)? {
            Json::Text(text) => Ok(text),
            _ => Err(format!("{key} is no string")),
        }
    }

    pub fn number(&self, key: &str) -> Result<f64, String> {
        match self.need(key)? {
            Json::Number(number) => Ok(*number),
            _ => Err(format!("{key} is no number")),
        }
    }

    pub fn truth(&self, key: &str) -> Result<bool, String> {
        match self.need(key)? {
            Json::Bool(truth) => Ok(*truth),
            _ => Err(format!("{key} is neither true nor false")),
        }
    }

    /// A list of whole numbers that are not negative.
    pub fn wholes(&self, key: &str) -> Result<Vec<usize>, String> {
        match self.need(key)? {
            Json::List(items) => items.iter().map(Json::whole).collect::<Option<_>>(),
            _ => None,
        }
        .ok_or_else(|| format!("{key} is no list of whole numbers"))
    }

    fn whole(&self) -> Option<usize> {
        match self {
            Json::Number(n) if *n >= 0.0 && n.fract() == 0.0 && *n <= 2f64.powi(53) => {
                Some(*n as usize)
            }
            _ => None,
        }
    }
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out += &format!("\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out + "\""
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expected(&self, what: &str) -> String {
        let found: String = self.text[self.at..].chars().take(10).collect();
        format!("JSON: expected {what}, found {found:?}")
    }

    fn accept(&mut self, c: u8) -> bool {
        self.space();
        let is_there = self.peek() == Some(c);
        self.at += usize::from(is_there);
        is_there
    }

    fn expect(&mut self, c: u8) -> Result<(), String> {
        if self.accept(c) {
            return Ok(());
        }
        Err(self.expected(&format!("{:?}", c as char)))
    }

    fn value(&mut self) -> Result<Json, String> {
        self.space();
        for (word, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
        ] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        match self.peek() {
            Some(b'{') => Ok(Json::Object(self.several(b'{', b'}', |reader| {
                let key = reader.string()?;
                reader.expect(b':')?;
                Ok((key, reader.value()?))
            })?)),
            Some(b'[') => Ok(Json::List(self.several(b'[', b']', Reader::value)?)),
            Some(b'"') => Ok(Json::Text(self.string()?)),
            _ => self.number(),
        }
    }

    /// What stands between two brackets, separated by commas.
    fn several<T>(
        &mut self,
        open: u8,
        close: u8,
        item: impl Fn(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("JSON: nested deeper than {DEEPEST}"));
        }
        let mut items = Vec::new();
        if !self.accept(close) {
            items.push(item(self)?);
            while self.accept(b',') {
                items.push(item(self)?);
            }
            self.expect(close)?;
        }
        self.depth -= 1;
        Ok(items)
    }

    fn string(&mut self) -> Result<String, String> {
        self.expect(b'"')?;
        let mut out = String::new();
        loop {
            let c = self.text[self.at..].chars().next().filter(|c| *c >= ' ');
            let c = c.ok_or("JSON: a string does not end")?;
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\\' => out.push(self.escaped()?),
                c => out.push(c),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, String> {
        let c = self.peek();
        self.at += usize::from(c.is_some_and(|c| c.is_ascii()));
        Ok(match c {
            Some(c @ (b'"' | b'\\' | b'/')) => c as char,
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => self.unicode()?,
            _ => return Err("JSON: an unknown escape in a string".into()),
        })
    }

    /// The character after `\u`; two halves of a surrogate pair are one.
    fn unicode(&mut self) -> Result<char, String> {
        let mut units = vec![self.hex4()?];
        if (0xD800..0xDC00).contains(&units[0]) && self.text[self.at..].starts_with("\\u") {
            self.at += 2;
            units.push(self.hex4()?);
        }
        let mut found = char::decode_utf16(units);
        match (found.next(), found.next()) {
            (Some(Ok(c)), None) => Ok(c),
            _ => Err("JSON: half a surrogate pair".into()),
        }
    }

    fn hex4(&mut self) -> Result<u16, String> {
        let digits = self
            .text
            .get(self.at..self.at + 4)
            .filter(|d| d.bytes().all(|c| c.is_ascii_hexdigit()));
        let digits = digits.ok_or("JSON: expected four hexadecimal digits after \\u")?;
        self.at += 4;
        u16::from_str_radix(digits, 16).map_err(|why| why.to_string())
    }

    fn number(&mut self) -> Result<Json, String> {
        let begin = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        let number: f64 = self.text[begin..self.at]
            .parse()
            .map_err(|_| self.expected("a number"))?;
        if number.is_infinite() {
            return Err("JSON: a number is too large".into());
        }
        Ok(Json::Number(number))
    }

    fn digits(&mut self) -> Result<(), String> {
        if !self.peek().is_some_and(|c| c.is_ascii_digit()) {
            return Err(self.expected("a value"));
        }
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }
}
