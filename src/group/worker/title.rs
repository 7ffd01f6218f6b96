//! What `ps` shows of a worker, in the place of a command line that holds the whole boot script.

/// Writes the title over the command line. Before other threads are there.
pub fn set(title: &str) {
    let Some((start, end)) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(arguments) else {
        return;
    };
    let room = end.saturating_sub(start);
    let title = title.as_bytes();
    let length = title.len().min(room.saturating_sub(1));
    // SAFETY: the kernel says that this process's command line is there, and nobody else writes it; Python has a copy of
    // its own.
    unsafe {
        let place = start as *mut u8;
        std::ptr::copy_nonoverlapping(title.as_ptr(), place, length);
        std::ptr::write_bytes(place.add(length), 0, room - length);
    }
}

/// Where the command line begins and ends: fields 48 and 49 of proc(5).
fn arguments(stat: &str) -> Option<(usize, usize)> {
    // The second field is a name that may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(45).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// `display-name`, where `%{GROUP}` stands for the group; without it group and applications.
pub fn of(display_name: Option<&str>, group: &str, applications: &[&str]) -> String {
    match display_name {
        Some(name) => name.replace("%{GROUP}", &format!("(wsgi:{group})")),
        None => format!("(wsgi:{group}) {}", applications.join(" ")).trim_end().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_found_behind_any_name() {
        let fields = (3..=52).map(|number| (number * 10).to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(arguments(&format!("7 (a) b) (c)) {fields}")), Some((480, 490)));
        assert_eq!(arguments("7 (a) S 1"), None);
    }

    #[test]
    fn titles_name_group_and_applications() {
        assert_eq!(of(Some("%{GROUP} x"), "site", &[]), "(wsgi:site) x");
        assert_eq!(of(None, "site", &["a:b", "c:d"]), "(wsgi:site) a:b c:d");
    }
}
