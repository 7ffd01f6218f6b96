//! The reference pages say what the code says.

use std::fs;
use std::path::Path;

use highball::directives::{Context, DIRECTIVES, NOT_BUILT};
use highball::error::Code;
use highball::group::options::{Fate, OPTIONS};

#[test]
fn every_code_has_an_entry_with_its_text() {
    let page = page("docs/errors.md");
    for code in Code::ALL {
        let heading = format!("### {code}: {}", code.text());
        let entry = page.split(&heading).nth(1).unwrap_or_else(|| panic!("docs/errors.md lacks \"{heading}\""));
        let entry = entry.split("\n#").next().unwrap_or_default();
        for part in ["- Cause: ", "- Action: "] {
            assert!(entry.contains(part), "the entry of {code} has no \"{part}\"");
        }
    }
}

#[test]
fn no_entry_stands_for_a_code_that_is_not_there() {
    let known: Vec<String> = Code::ALL.iter().map(ToString::to_string).collect();
    for line in page("docs/errors.md").lines().filter_map(|line| line.strip_prefix("### ")) {
        let code = line.split(':').next().unwrap_or_default();
        assert!(known.iter().any(|known| known == code), "docs/errors.md has an entry for {code}");
    }
}

#[test]
fn every_directive_has_an_entry_with_its_head() {
    let page = page("docs/directives.md");
    for directive in DIRECTIVES {
        let names: Vec<&str> = [directive.nginx, directive.apache].into_iter().flatten().collect();
        let title = format!("### {}", names.join(", "));
        let entry =
            page.split(&format!("{title}\n")).nth(1).unwrap_or_else(|| panic!("docs/directives.md lacks \"{title}\""));
        let entry = entry.split("\n#").next().unwrap_or_default();
        let flat = entry.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\|", "|");
        for fact in [directive.syntax, directive.default, directive.text] {
            let fact = fact.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(&fact), "the entry of {title} does not say \"{fact}\"; it says \"{flat}\"");
        }
        for context in contexts(directive.nginx.is_some(), directive.apache.is_some(), directive.contexts) {
            assert!(flat.contains(context), "the entry of {title} lacks the context {context}");
        }
    }
}

#[test]
fn every_option_of_a_process_group_is_listed() {
    let page = page("docs/directives.md");
    for option in OPTIONS {
        let row = match option.fate {
            Fate::Taken => {
                format!("| `{}` | {} | {} | {} |", option.name, option.syntax, option.default, option.text)
            }
            Fate::Meaningless(why) => format!("| `{}` | {why} |", option.name),
            Fate::Refused => format!("`{}`", option.name),
        };
        assert!(page.contains(&row), "docs/directives.md lacks \"{row}\"");
    }
}

#[test]
fn directives_that_are_refused_are_listed() {
    let page = page("docs/directives.md");
    let refused = page.split("## Not supported yet").nth(1).expect("a section on refused directives");
    for name in NOT_BUILT {
        assert!(refused.contains(&format!("`{name}`")), "docs/directives.md does not list {name}");
    }
}

fn contexts(nginx: bool, apache: bool, contexts: &[Context]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for context in contexts {
        let (in_nginx, in_apache) = match context {
            Context::Main => ("`http`", "server config"),
            Context::Server => ("`server`", "`<VirtualHost>`"),
            Context::Location => ("`location`", "`<Directory>`"),
            Context::If => ("`if`", ""),
            Context::Htaccess => ("", "`.htaccess`"),
        };
        names.extend(Some(in_nginx).filter(|name| nginx && !name.is_empty()));
        names.extend(Some(in_apache).filter(|name| apache && !name.is_empty()));
    }
    names
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = fs::read_to_string(&path);
    assert!(text.is_ok(), "{} cannot be read", path.display());
    text.unwrap_or_default()
}
