// Package logging is the one home of logrus: how log lines look, and how a logger travels with a request.
//
// A message is a constant sentence; data goes into fields. Standard input, output of programs and tokens never do.
package logging

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/sirupsen/logrus"
)

// Logger is what the rest of the program logs to.
type Logger = logrus.FieldLogger

// Fields are the data of a log line.
type Fields = logrus.Fields

// Formatters that New accepts.
const (
	Text = "TextFormatter"
	JSON = "JSONFormatter"
)

const timeFormat = "2006-01-02T15:04:05.000000Z"

// New makes a logger that writes to w.
func New(w io.Writer, level, formatter string) (*logrus.Logger, error) {
	l := logrus.New()
	l.SetOutput(w)
	lv, err := logrus.ParseLevel(strings.ToLower(level))
	if err != nil {
		return nil, fmt.Errorf("logger.level: %q is none of panic, fatal, error, warn, info, debug, trace", level)
	}
	l.SetLevel(lv)
	switch formatter {
	case Text:
		l.SetFormatter(&clean{&logrus.TextFormatter{TimestampFormat: timeFormat, FullTimestamp: true, DisableColors: true}})
	case JSON:
		l.SetFormatter(&clean{&logrus.JSONFormatter{TimestampFormat: timeFormat}})
	default:
		return nil, fmt.Errorf("logger.formatter: %q is neither %s nor %s", formatter, Text, JSON)
	}
	return l, nil
}

// Discard is a logger that writes nothing.
func Discard() *logrus.Logger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

// clean writes times in UTC and keeps user-controlled values from forging lines.
type clean struct{ next logrus.Formatter }

func (c *clean) Format(e *logrus.Entry) ([]byte, error) {
	d := *e
	d.Time = e.Time.UTC()
	d.Message = oneLine(e.Message)
	d.Data = make(logrus.Fields, len(e.Data))
	for k, v := range e.Data {
		switch v := v.(type) {
		case string:
			d.Data[k] = oneLine(v)
		case error:
			d.Data[k] = oneLine(v.Error())
		default:
			d.Data[k] = v
		}
	}
	return c.next.Format(&d)
}

var lineBreaks = strings.NewReplacer("\r", `\r`, "\n", `\n`)

func oneLine(s string) string { return lineBreaks.Replace(s) }

type key struct{}

// carried is a logger, or a field more than another one has. Few requests write anything, so an entry is made for those that do.
type carried struct {
	logger Logger
	than   *carried
	name   string
	value  any
}

// With returns a context that carries l.
func With(ctx context.Context, l Logger) context.Context {
	return context.WithValue(ctx, key{}, &carried{logger: l})
}

// Add returns a context whose logger has a field more, where it carries one.
func Add(ctx context.Context, name string, value any) context.Context {
	c, ok := ctx.Value(key{}).(*carried)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, key{}, &carried{than: c, name: name, value: value})
}

// From is the logger that ctx carries, or one that discards.
func From(ctx context.Context) Logger {
	c, ok := ctx.Value(key{}).(*carried)
	if !ok {
		return Discard()
	}
	fields := Fields{}
	for ; c.than != nil; c = c.than {
		if _, newer := fields[c.name]; !newer {
			fields[c.name] = c.value
		}
	}
	return c.logger.WithFields(fields)
}

// Debugs reports whether l writes what is logged at the level debug. Who makes up much for one line asks first.
func Debugs(l Logger) bool { return enabled(l, logrus.DebugLevel) }

// Traces reports whether l writes what Trace logs.
func Traces(l Logger) bool { return enabled(l, logrus.TraceLevel) }

func enabled(l Logger, level logrus.Level) bool {
	switch l := l.(type) {
	case *logrus.Logger:
		return l.IsLevelEnabled(level)
	case *logrus.Entry:
		return l.Logger.IsLevelEnabled(level)
	}
	return true
}

// Trace logs below debug, where the logger can.
func Trace(l Logger, message string) {
	if e, ok := l.(*logrus.Entry); ok {
		e.Trace(message)
	}
}
