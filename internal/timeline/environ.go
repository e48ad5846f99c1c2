package timeline

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// variables are those of OpenTelemetry's standard that have a meaning here. Each stands in where the configuration says nothing. A later one of the same meaning is the more special.
var variables = []struct {
	name string
	set  func(o *Options, given *Options, value string) error
}{
	{"OTEL_EXPORTER_OTLP_ENDPOINT", func(o, given *Options, v string) error {
		if given.Endpoint == "" {
			o.Endpoint = strings.TrimSuffix(v, "/") + "/v1/traces"
		}
		return nil
	}},
	{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", func(o, given *Options, v string) error {
		if given.Endpoint == "" {
			o.Endpoint = v
		}
		return nil
	}},
	{"OTEL_EXPORTER_OTLP_HEADERS", setHeaders},
	{"OTEL_EXPORTER_OTLP_TRACES_HEADERS", setHeaders},
	{"OTEL_EXPORTER_OTLP_TIMEOUT", setTimeout},
	{"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", setTimeout},
	{"OTEL_EXPORTER_OTLP_CERTIFICATE", setCAFile},
	{"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", setCAFile},
	{"OTEL_EXPORTER_OTLP_PROTOCOL", only("http/protobuf")},
	{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", only("http/protobuf")},
	{"OTEL_EXPORTER_OTLP_COMPRESSION", only("gzip")},
	{"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", only("gzip")},
	{"OTEL_TRACES_EXPORTER", func(o, given *Options, v string) error {
		if v == "none" && given.Endpoint == "" {
			o.Endpoint = ""
			return nil
		}
		return only("otlp")(o, given, v)
	}},
	{"OTEL_PROPAGATORS", only("tracecontext")},
	{"OTEL_RESOURCE_ATTRIBUTES", setResource},
	{"OTEL_SERVICE_NAME", func(o, _ *Options, v string) error { o.Service = strings.ToValidUTF8(v, ""); return nil }},
	{"OTEL_SDK_DISABLED", func(o, _ *Options, v string) error {
		if strings.EqualFold(v, "true") {
			o.Ratio = 0
		}
		return nil
	}},
}

// foreign begin the names of variables that would change what is sent, and that mean nothing here.
var foreign = []string{"OTEL_EXPORTER_OTLP_", "OTEL_TRACES_SAMPLER", "OTEL_BSP_", "OTEL_SPAN_"}

// Environ takes in the standard variables of OpenTelemetry, in the form of os.Environ. Those that would change what is sent and have no meaning here are refused, rather than silently left out; errors name no value.
func (o Options) Environ(environ []string) (Options, error) {
	values := map[string]string{}
	for _, kv := range environ {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "OTEL_") && value != "" {
			values[name] = value
		}
	}
	given := o
	var problems []error
	for _, v := range variables {
		value, ok := values[v.name]
		delete(values, v.name)
		if !ok {
			continue
		}
		if err := v.set(&o, &given, value); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", v.name, err))
		}
	}
	for name := range values {
		for _, prefix := range foreign {
			if strings.HasPrefix(name, prefix) && !strings.Contains(name, "_METRICS_") && !strings.Contains(name, "_LOGS_") {
				problems = append(problems, fmt.Errorf("%s: it has no meaning here: use the configuration's keys of tracing, or unset it", name))
				break
			}
		}
	}
	return o, errors.Join(problems...)
}

func setHeaders(o, given *Options, v string) error {
	if len(given.Headers) > 0 {
		return nil
	}
	headers := map[string]string{}
	for pair := range strings.SplitSeq(v, ",") {
		name, value, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || err != nil {
			return errors.New("it is not a list of name=value, percent-encoded and with commas between them")
		}
		headers[strings.TrimSpace(name)] = value
	}
	o.Headers = headers
	return nil
}

// setResource takes in what the spans' sender is, besides what it knows of itself. The service's name is one of the attributes.
func setResource(o, _ *Options, v string) error {
	attributes := map[string]string{}
	for pair := range strings.SplitSeq(v, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name, err1 := url.PathUnescape(strings.TrimSpace(name))
		value, err2 := url.PathUnescape(strings.TrimSpace(value))
		if !ok || name == "" || err1 != nil || err2 != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return errors.New("it is not a list of name=value, percent-encoded and with commas between them")
		}
		attributes[name] = value
	}
	o.Service = cmp.Or(attributes[serviceName], o.Service)
	o.Resource = attributes
	return nil
}

func setTimeout(o, given *Options, v string) error {
	ms, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return errors.New("it is not a number of milliseconds")
	}
	if given.Timeout == 0 {
		o.Timeout = time.Duration(ms) * time.Millisecond
	}
	return nil
}

func setCAFile(o, given *Options, v string) error {
	if given.CAFile == "" {
		o.CAFile = v
	}
	return nil
}

// only refuses all values but one.
func only(value string) func(o, given *Options, v string) error {
	return func(_, _ *Options, v string) error {
		if v != value {
			return fmt.Errorf("only %s is offered", value)
		}
		return nil
	}
}

// Headers makes a map of lines of the form name=value. Its errors name no value.
func Headers(lines []string) (map[string]string, error) {
	headers := map[string]string{}
	for _, l := range lines {
		name, value, ok := strings.Cut(l, "=")
		if !ok || name == "" {
			return nil, errors.New("a header is not of the form name=value")
		}
		headers[name] = value
	}
	return headers, nil
}
