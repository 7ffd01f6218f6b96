//! Every directive, once: what nginx calls it, what Apache calls it, where it may stand and what it means.
//!
//! Both parsers take their rows from here, and so does the reference page (`docs/directives.md`, checked by a test).
#![forbid(unsafe_code)]

/// Names a directive for the hosts' parsers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    Pass,
    Mount,
    Param,
    Threads,
    PythonHome,
    PythonPath,
    ApplicationGroup,
    DaemonProcess,
    ProcessGroup,
    SocketPrefix,
    ScriptReloading,
    PassAuthorization,
    RequestBuffering,
    ResponseBuffer,
    InterceptErrors,
    ScriptAlias,
    ScriptAliasMatch,
    CallableObject,
    ChunkedRequest,
    RestrictEmbedded,
    RestrictProcess,
    /// A directive of mod_wsgi that Highball refuses by name.
    NotBuilt,
}

/// Where a directive may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// nginx `http`; Apache outside any section.
    Main,
    /// nginx `server`; Apache `<VirtualHost>`.
    Server,
    /// nginx `location`; Apache `<Directory>`, `<Location>`, `<Files>`.
    Location,
    /// nginx `if` in a location.
    If,
    /// Apache `.htaccess`, with `AllowOverride FileInfo`.
    Htaccess,
}

pub struct Directive {
    pub id: Id,
    pub nginx: Option<&'static str>,
    pub apache: Option<&'static str>,
    /// Arguments as documented, for nginx where it has the directive, else for Apache.
    pub syntax: &'static str,
    /// Fewest and most arguments.
    pub arguments: (usize, usize),
    /// A flag: `on` or `off`.
    pub flag: bool,
    pub default: &'static str,
    pub contexts: &'static [Context],
    pub text: &'static str,
}

/// The directive a name stands for, in nginx's or Apache's spelling.
pub fn find(name: &str) -> Option<&'static Directive> {
    DIRECTIVES.iter().find(|directive| {
        directive.nginx == Some(name) || directive.apache.is_some_and(|apache| apache.eq_ignore_ascii_case(name))
    })
}

use Context::{Htaccess, If, Location, Main, Server};

const EVERYWHERE: &[Context] = &[Main, Server, Location];
const ANYWHERE: &[Context] = &[Main, Server, Location, Htaccess];

pub static DIRECTIVES: &[Directive] = &[
    Directive {
        id: Id::Pass,
        nginx: Some("wsgi_pass"),
        apache: None,
        syntax: "module:callable | module:factory() | /path/app.wsgi[:callable]",
        arguments: (1, 1),
        flag: false,
        default: "none",
        contexts: &[Location, If],
        text: "Answers requests of this location with a WSGI application.",
    },
    Directive {
        id: Id::Mount,
        nginx: Some("wsgi_mount"),
        apache: None,
        syntax: "/prefix",
        arguments: (1, 1),
        flag: false,
        default: "none",
        contexts: &[Server, Location],
        text: "The path the application is mounted at: becomes SCRIPT_NAME, the rest PATH_INFO. Whole path segments; a \
               request outside it is answered 404.",
    },
    Directive {
        id: Id::Param,
        nginx: Some("wsgi_param"),
        apache: None,
        syntax: "NAME value",
        arguments: (2, 2),
        flag: false,
        default: "none",
        contexts: EVERYWHERE,
        text: "Adds a key to environ, over any other value; the value may contain nginx variables. A level with params of \
               its own inherits none.",
    },
    Directive {
        id: Id::Threads,
        nginx: Some("wsgi_threads"),
        apache: None,
        syntax: "number",
        arguments: (1, 1),
        flag: false,
        default: "16",
        contexts: &[Main],
        text: "How many requests each nginx worker process runs at once in Python.",
    },
    Directive {
        id: Id::PythonHome,
        nginx: Some("wsgi_python_home"),
        apache: Some("WSGIPythonHome"),
        syntax: "directory",
        arguments: (1, 1),
        flag: false,
        default: "the Python Highball was built with",
        contexts: &[Main],
        text: "A virtual environment, or the prefix of a Python installation of the version Highball was built with.",
    },
    Directive {
        id: Id::PythonPath,
        nginx: Some("wsgi_python_path"),
        apache: Some("WSGIPythonPath"),
        syntax: "directory ... (Apache: directories joined by colons)",
        arguments: (1, usize::MAX),
        flag: false,
        default: "none",
        contexts: &[Main],
        text: "Directories put at the front of sys.path; .pth files in them are read.",
    },
    Directive {
        id: Id::ApplicationGroup,
        nginx: Some("wsgi_application_group"),
        apache: Some("WSGIApplicationGroup"),
        syntax: "global (Apache: %{GLOBAL})",
        arguments: (1, 1),
        flag: false,
        default: "none: one application has the interpreter for itself",
        contexts: EVERYWHERE,
        text: "Names the interpreter. global is the main one, shared by every application that says so; without it a \
               second application in the same process is refused.",
    },
    Directive {
        id: Id::DaemonProcess,
        nginx: Some("wsgi_daemon_process"),
        apache: Some("WSGIDaemonProcess"),
        syntax: "name [option=value ...]",
        arguments: (1, usize::MAX),
        flag: false,
        default: "none",
        contexts: &[Main, Server],
        text: "Declares a process group: processes of its own for applications, with their own user, virtual environment, Python \
               version and limits. The options are listed below. The name is the whole server's.",
    },
    Directive {
        id: Id::ProcessGroup,
        nginx: Some("wsgi_process_group"),
        apache: Some("WSGIProcessGroup"),
        syntax: "name | off | $variable (Apache: name | %{GLOBAL} | %{ENV:variable})",
        arguments: (1, 1),
        flag: false,
        default: "off (Apache: %{GLOBAL})",
        contexts: EVERYWHERE,
        text: "The process group that runs the application. off, %{GLOBAL}: it runs inside the server's own processes. With a \
               variable the group is chosen for each request: by text with nginx variables; on Apache by the request's note, \
               else its variable (SetEnv, SetEnvIf, RewriteRule [E=]), else the environment variable of that name that the server \
               was started with. There, off, %{GLOBAL} and nothing stand for the server's own processes; a name that is not \
               declared is answered 500. The groups that may be chosen import the application with the first request for it.",
    },
    Directive {
        id: Id::RestrictProcess,
        nginx: Some("wsgi_restrict_process"),
        apache: Some("WSGIRestrictProcess"),
        syntax: "name | off ... (Apache: name | %{GLOBAL} ...)",
        arguments: (1, usize::MAX),
        flag: false,
        default: "none: all groups, and the server's own processes",
        contexts: EVERYWHERE,
        text: "The process groups that may run the application, where wsgi_process_group or WSGIProcessGroup chooses one for each \
               request: any other is answered 500. off, %{GLOBAL}: the server's own processes. A list replaces those of the places \
               around it, and on Apache an earlier one of the same place. nginx refuses a configuration whose fixed group is not \
               in the list.",
    },
    Directive {
        id: Id::SocketPrefix,
        nginx: Some("wsgi_socket_prefix"),
        apache: Some("WSGISocketPrefix"),
        syntax: "directory",
        arguments: (1, 1),
        flag: false,
        default: "/run/highball; where root did not start the server: below /run/user or /tmp",
        contexts: &[Main],
        text: "Where the directory with the sockets of process groups is made. No other user may be able to rename it.",
    },
    Directive {
        id: Id::ScriptReloading,
        nginx: Some("wsgi_script_reloading"),
        apache: Some("WSGIScriptReloading"),
        syntax: "on | off",
        arguments: (1, 1),
        flag: true,
        default: "on",
        contexts: ANYWHERE,
        text: "Loads a script file again when it has changed, which is looked at once a second at most. Modules it imports \
               stay as they are.",
    },
    Directive {
        id: Id::PassAuthorization,
        nginx: Some("wsgi_pass_authorization"),
        apache: Some("WSGIPassAuthorization"),
        syntax: "on | off | auto (Apache: On | Off)",
        arguments: (1, 1),
        flag: false,
        default: "auto (Apache: Off)",
        contexts: ANYWHERE,
        text: "Whether the application sees the Authorization header. auto: unless the server itself checks passwords \
               (auth_basic) in this location.",
    },
    Directive {
        id: Id::RequestBuffering,
        nginx: Some("wsgi_request_buffering"),
        apache: None,
        syntax: "on | off",
        arguments: (1, 1),
        flag: true,
        default: "on",
        contexts: EVERYWHERE,
        text: "on: the application is called once nginx has the whole request body, in memory or in a temporary file. off: it \
               is called at once and reads the body as it arrives; \"100 Continue\" is sent at its first read. Apache always \
               does the latter.",
    },
    Directive {
        id: Id::ResponseBuffer,
        nginx: Some("wsgi_response_buffer"),
        apache: None,
        syntax: "size",
        arguments: (1, 1),
        flag: false,
        default: "64k",
        contexts: EVERYWHERE,
        text: "How much of a response given block by block may wait for a slow client in memory, from 1k to 1g: with more, the \
               application waits in its next block.",
    },
    Directive {
        id: Id::InterceptErrors,
        nginx: Some("wsgi_intercept_errors"),
        apache: Some("WSGIErrorOverride"),
        syntax: "on | off",
        arguments: (1, 1),
        flag: true,
        default: "off",
        contexts: ANYWHERE,
        text: "on: where the application answers with a status of 400 or above for which there is an error_page (Apache: an \
               ErrorDocument, or its own page), that page is sent in place of the application's.",
    },
    Directive {
        id: Id::ScriptAlias,
        nginx: None,
        apache: Some("WSGIScriptAlias"),
        syntax: "url-path file-or-directory [application-group=%{GLOBAL}] [process-group=name|%{ENV:variable}] \
                 [callable-object=name] [pass-authorization=On|Off]",
        arguments: (2, 6),
        flag: false,
        default: "none",
        contexts: &[Main, Server],
        text: "Mounts a script at a URL path. The first alias that matches wins. With both groups given as %{GLOBAL} the \
               script is loaded when a server process starts.",
    },
    Directive {
        id: Id::ScriptAliasMatch,
        nginx: None,
        apache: Some("WSGIScriptAliasMatch"),
        syntax: "regular-expression file-or-directory [the options of WSGIScriptAlias]",
        arguments: (2, 6),
        flag: false,
        default: "none",
        contexts: &[Main, Server],
        text: "As WSGIScriptAlias, for URL paths that match an expression. $1 and so on in the file stand for what its groups \
               matched; what follows the match in the URL follows the file. Tried in one order with WSGIScriptAlias.",
    },
    Directive {
        id: Id::CallableObject,
        nginx: None,
        apache: Some("WSGICallableObject"),
        syntax: "name",
        arguments: (1, 1),
        flag: false,
        default: "application",
        contexts: ANYWHERE,
        text: "The name of the callable in the script.",
    },
    Directive {
        id: Id::ChunkedRequest,
        nginx: None,
        apache: Some("WSGIChunkedRequest"),
        syntax: "On | Off",
        arguments: (1, 1),
        flag: true,
        default: "Off",
        contexts: ANYWHERE,
        text: "Whether request bodies without Content-Length are accepted. Off: such a request is answered 411.",
    },
    Directive {
        id: Id::RestrictEmbedded,
        nginx: None,
        apache: Some("WSGIRestrictEmbedded"),
        syntax: "On | Off",
        arguments: (1, 1),
        flag: true,
        default: "Off",
        contexts: &[Main],
        text: "On: Python is not started in Apache's own processes, and a request for an application there is answered 500.",
    },
];

/// Directives of mod_wsgi that are known and not supported yet: refused by name, never ignored.
pub static NOT_BUILT: &[&str] = &[
    "WSGIAcceptMutex",
    "WSGIAccessScript",
    "WSGIAuthGroupScript",
    "WSGIAuthUserScript",
    "WSGICaseSensitivity",
    "WSGIDestroyInterpreter",
    "WSGIDispatchScript",
    "WSGIDontWriteBytecode",
    "WSGIEnableSendfile",
    "WSGIFreeThreading",
    "WSGIGroupAuthoritative",
    "WSGIHandlerScript",
    "WSGIIgnoreActivity",
    "WSGIImportScript",
    "WSGIMapHEADToGET",
    "WSGIPassApacheRequest",
    "WSGIPerInterpreterGIL",
    "WSGIPythonEggs",
    "WSGIPythonHashSeed",
    "WSGIPythonOptimize",
    "WSGIPythonWarnings",
    "WSGIRestrictSignal",
    "WSGIRestrictStdin",
    "WSGIRestrictStdout",
    "WSGIServerMetrics",
    "WSGISlowRequests",
    "WSGISocketRotation",
    "WSGISwitchInterval",
    "WSGITelemetryOptions",
    "WSGITelemetryService",
    "WSGITrustedProxies",
    "WSGITrustedProxyHeaders",
    "WSGIVerboseDebugging",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_once() {
        let mut names: Vec<&str> = DIRECTIVES.iter().flat_map(|d| [d.nginx, d.apache]).flatten().collect();
        names.extend(NOT_BUILT);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn directives_are_found_by_either_name() {
        assert_eq!(find("wsgi_python_home").map(|d| d.id), Some(Id::PythonHome));
        assert_eq!(find("wsgipythonhome").map(|d| d.id), Some(Id::PythonHome));
        assert!(find("wsgi_python_hom").is_none());
    }
}
